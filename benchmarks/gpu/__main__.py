"""Stock diffusers and this plugin's presets, side by side in one run: seconds, memory, and the distance of their latents.

    python benchmarks/gpu --out results            # the real 1.3B architecture with random weights, 9 minutes at most
    python benchmarks/gpu --out results --quick    # fewer steps, one round
    python benchmarks/gpu --device cpu --size tiny --quick --out results
    python benchmarks/gpu --checkpoint FOLDER --out results

Every round runs each variant once, on the same weights, prompt, seed and shape, so that a GPU that gets warm or is shared slows
all of them. Before the first round each variant makes a few steps of each shape, which are timed apart (compiling). Every
measurement is written at once; the same command goes on after a cut, in the same environment. Seconds are from an idle GPU
to an idle GPU. `stock` is WanPipeline as it comes, on the transformer and the text encoder that the presets run on, with
everything taken out, and a VAE of its own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ceilings
import diffusers  # noqa: TID253  # a script on torch
import numpy as np
import torch  # noqa: TID253  # as above
from closer import QUESTIONS, look
from results import Results
from subject import GUIDANCE, SHIFT, STOCK, Case, Subject, error, warmed
from wan_host_wan21.graphs import MAX_TOKENS

REPOSITORY = Path(__file__).resolve().parents[2]
VARIANTS = (STOCK, "exact", "fast", "turbo")
RESERVE = 15.0
"""Seconds kept for writing, of the budget."""


def cases(size: str, *, quick: bool) -> tuple[Case, ...]:
    """Return what is made: a video and an image."""
    if size == "tiny":
        return Case("video", 9, 32, 48, 8 if quick else 12), Case("image", 1, 32, 48, 8 if quick else 12)
    steps = 10 if quick else 50
    return Case("video", 81, 480, 832, steps), Case("image", 1, 480, 832, steps)


def setting(arguments: argparse.Namespace, device: torch.device, subject: Subject) -> dict[str, Any]:
    """Return what a measurement depends on."""
    driver, name = "none", "CPU"
    if device.type == "cuda":
        import pynvml

        pynvml.nvmlInit()
        driver, name = pynvml.nvmlSystemGetDriverVersion(), torch.cuda.get_device_name(device)
    weights = "random weights" if subject.random else f"weights of {arguments.checkpoint}"
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "commit": arguments.commit or commit(),
        "size": arguments.size if arguments.checkpoint is None else str(arguments.checkpoint),
        "weights": weights,
        "quick": arguments.quick,
        "settings": arguments.setting,
        "guidance": GUIDANCE,
        "shift": SHIFT,
        "date": arguments.date,
    }


def commit() -> str:
    """Return the commit that is checked out, or that there is none."""
    asked = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def measure(arguments: argparse.Namespace) -> Results:
    """Run what is missing, until it is done or the time is up."""
    begun = time.monotonic()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    options = dict(pair.split("=", 1) for pair in arguments.setting)
    subject = Subject(arguments.checkpoint, arguments.size, device, out / "data", **options)
    print(f"model ready after {time.monotonic() - begun:.1f} s", flush=True)
    results = Results(out / "results.json", setting(arguments, device, subject), fresh=arguments.fresh)
    chosen = [variant for variant in arguments.variants.split(",") if variant != "turbo" or subject.model.turbo is not None]
    planned = [case for case in cases(arguments.size, quick=arguments.quick) if case.name in arguments.cases.split(",")]
    if arguments.look:
        look(subject, planned[0], out, set(arguments.look.split(",")))
        return results
    dtype = subject.components.transformer.dtype
    for case in planned:
        if case.name not in results.found["ceilings"]:
            found = ceilings.measured(subject.config, case.tokens, dtype, device)
            found["floor"] = ceilings.floor(subject.config, case.tokens, found)
            fastest = max(found["kernels"], key=lambda name: found["kernels"][name])
            found["sustained_floor"] = ceilings.sustained(subject.config, case.tokens, dtype, fastest, device)
            results.found["ceilings"][case.name] = found
            results.save()
    warm: set[tuple[str, str]] = set()
    for repeat in range(1 if arguments.quick else arguments.repeats):
        for case in planned:
            for variant in chosen:
                if results.has(case.name, variant, repeat):
                    continue
                left = arguments.budget - RESERVE - (time.monotonic() - begun)
                if left < (results.expected_seconds(case.name, variant) or 0.0):
                    print(f"no time for {case.name} {variant} {repeat}: {left:.0f} s left; run again to go on", flush=True)
                    continue
                if (case.name, variant) not in warm:
                    started = time.monotonic()
                    subject.run(variant, warmed(case))
                    warm.add((case.name, variant))
                    row = {"case": case.name, "variant": variant, "seconds": time.monotonic() - started}
                    results.add("warm_ups", row)
                    print(f"warm {case.name} {variant}: {row['seconds']:.1f} s", flush=True)
                one(subject, case, variant, repeat, results)
    return results


def one(subject: Subject, case: Case, variant: str, repeat: int, results: Results) -> None:
    """Measure one run."""
    if case.tokens <= MAX_TOKENS:
        subject.run(variant, warmed(case))  # changing variants drops the CUDA graphs, which a worker keeps
    made = subject.run(variant, case)
    latents, steps = made.pop("latents"), made.pop("step_seconds")
    kept = results.path.parent / f"stock_{case.name}.npy"
    if variant == STOCK and not kept.is_file():
        np.save(kept, latents)
    finite = bool(np.isfinite(latents).all())
    known = kept.is_file() and variant != STOCK
    shares = results.found["ceilings"][case.name]
    known_floor = shares["sustained_floor"]
    made |= {
        "case": case.name,
        "variant": variant,
        "repeat": repeat,
        "step": float(np.median(steps)) if steps else None,
        "steps": [round(seconds, 6) for seconds in steps],
        "error": error(latents, np.load(kept)) if known and finite else None,
        "finite": finite,
        "share": shares["floor"] * made["passes"] / made["stages"]["denoise"],
        "sustained_share": known_floor and known_floor * made["passes"] / made["stages"]["denoise"],
    }
    results.add("runs", made)
    print(f"{case.name} {variant} {repeat}: {made['seconds']:.2f} s {made['stages']} error {made['error']}", flush=True)


def main() -> None:
    """Measure, then write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results.json, results.md, results.png and what presets keep")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["1.3b", "tiny"], default="1.3b")
    parser.add_argument("--checkpoint", type=Path, help="a folder in the diffusers layout, instead of random weights")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--cases", default="video,image")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--budget", type=float, default=540, help="seconds in all; what does not fit is left for the next call")
    parser.add_argument("--look", help=f"instead: {', '.join(QUESTIONS)}; CUDA, and handover needs ffmpeg")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of the plugin")
    parser.add_argument("--commit", help="the commit under test, where there is no git")
    parser.add_argument("--date", default=dt.datetime.now(tz=dt.UTC).date().isoformat())
    parser.add_argument("--quick", action="store_true", help="ten steps and one round")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    arguments = parser.parse_args()
    if unknown := set(filter(None, (arguments.look or "").split(","))) - set(QUESTIONS):
        parser.error(f"--look {', '.join(sorted(unknown))}: it must be of {', '.join(QUESTIONS)}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results = measure(arguments)
    table = results.table()
    (arguments.out / "results.md").write_text(table, encoding="utf-8")
    results.plot(arguments.out / "results.png")
    print(table)


if __name__ == "__main__":
    main()
