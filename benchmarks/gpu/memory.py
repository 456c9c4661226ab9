"""Every placement on one model: memory as it is estimated and as it is, by phase, with seconds, and whether the results agree.

    python benchmarks/gpu/memory.py --out results        # the real 1.3B architecture with random weights, 83 frames of 480x832
    python benchmarks/gpu/memory.py --out results --device cpu --size tiny
    python benchmarks/gpu/memory.py --out results --checkpoint VACE --mode both     # what encoding a control takes as well

Each placement makes a clip of two steps, which compiles and puts the weights where they belong, and then the one that counts. The
first placement that ends is what the others' latents and frames are held against. What is reserved is what a card must have.
A placement that fails is written down with its error. memory.json is written after each; memory.md at the end.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from subject import Case, Subject, Watch, error
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import Job, Placement, needed_bytes

from wan_host import ReferenceMode, References

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
PHASES = ("text_encode", "vae_encode", "denoise", "decode")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class MemoryWatch(Watch):
    """A lane's context that also keeps the peaks of each phase, in GiB; None where the device does not count them."""

    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    encoding_since: float | None = None
    """When the VAE began to encode references, within the stage of denoising."""

    def progress(self, note: str = "") -> None:
        """Count what encoding references takes by itself."""
        if note == "encoding with the VAE" and self.encoding_since is None:
            wait(self.device)
            self.encoding_since = time.perf_counter()
        elif note == "denoising" and self.encoding_since is not None and "vae_encode" not in self.phases:
            wait(self.device)
            self.phases["vae_encode"] = {"seconds": time.perf_counter() - self.encoding_since, **self.peaks()}
            self.between()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a phase, and count its own memory."""
        self.between()
        with super().stage(name):
            yield
        self.phases[name] = {"seconds": self.stages[name], **self.peaks()}

    def between(self) -> None:
        """Keep the peaks of what was outside of phases, and begin to count anew."""
        found = self.peaks()
        if found["reserved_gib"] is not None:
            kept = self.phases.setdefault("between", found)
            self.phases["between"] = {name: max(kept[name] or 0.0, found[name] or 0.0) for name in found}
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, float | None]:
        """Return the peaks since the last count began."""
        if self.device.type != "cuda":
            return {"reserved_gib": None, "allocated_gib": None}
        return {
            "reserved_gib": torch.cuda.max_memory_reserved(self.device) / GIB,
            "allocated_gib": torch.cuda.max_memory_allocated(self.device) / GIB,
        }


def measured(
    subject: Subject, case: Case, placement: Placement, expected: dict[str, np.ndarray], mode: ReferenceMode = ReferenceMode.NONE
) -> dict[str, Any]:
    """Return what one placement needs. ``expected`` is filled by the first that ends."""
    model = subject.model
    asked = subject.request("exact", case)
    if mode is not ReferenceMode.NONE:
        picture = np.random.default_rng(0).integers(0, 255, (case.height, case.width, 3), np.uint8)
        asked = replace(asked, reference_mode=mode, references=References(first_frame=picture, last_frame=picture))
    job = Job(frames=case.frames, width=case.width, height=case.height)
    row: dict[str, Any] = {
        "placement": placement.value,
        "estimated_gib": needed_bytes(placement, model.placer.weights, job) / GIB,
    }
    model.placer._settings = model.settings.model_copy(update={"placement": placement})  # noqa: SLF001  # as the setting would
    begun = time.perf_counter()
    generate(replace(asked, num_inference_steps=2), model, Watch(subject.device))
    wait(subject.device)
    row["warm_up_seconds"] = time.perf_counter() - begun
    model.embeddings.forget()
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(subject.device)
    watch = MemoryWatch(subject.device)
    begun = time.perf_counter()
    made = generate(asked, model, watch)
    wait(subject.device)
    row["seconds"] = time.perf_counter() - begun
    watch.between()
    steps = watch.step_seconds()
    reserved = [phase["reserved_gib"] for phase in watch.phases.values() if phase["reserved_gib"] is not None]
    frames, latents = made.clips[0].frames, watch.latents
    expected.setdefault("frames", frames)
    expected.setdefault("latents", latents)
    return row | {
        "reserved_gib": max(reserved) if reserved else None,
        "host_gib": host_gib(),
        "step_seconds": statistics.median(steps) if steps else None,
        "phases": watch.phases,
        "frames_equal": bool(np.array_equal(frames, expected["frames"])),
        "latents_equal": bool(np.array_equal(latents, expected["latents"])),
        "latents_error": error(latents, expected["latents"]),
        "facts": dict(made.metadata),
    }


def host_gib() -> float | None:
    """Return what this process holds of the host's memory now; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE_SIZE / GIB
    except OSError:
        return None


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    case = found["case"]
    shape = f"{case['frames']} frames of {case['width']}x{case['height']}, {case['steps']} steps, references {found['mode']}"
    lines = [
        f"{found['device']}, torch {found['torch']}, {found['date']}: {shape}, {found['weights']}; one run of each placement.",
        "",
        "| placement | estimated | reserved | text encoding | references | denoising | decoding | a step | against the first |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"| `{row['placement']}` | {row['error']} |" + " |" * 7)
            continue
        phases = [_phase(row["phases"].get(name)) for name in PHASES]
        same = "the same bits" if row["frames_equal"] and row["latents_equal"] else f"latents {row['latents_error']:.1e} off"
        step = "-" if row["step_seconds"] is None else f"{row['step_seconds']:.3f} s"
        cells = [f"`{row['placement']}`", _gib(row["estimated_gib"]), _gib(row["reserved_gib"]), *phases, step, same]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} GiB"


def _phase(phase: dict[str, float | None] | None) -> str:
    return "-" if phase is None else f"{phase['seconds']:.2f} s, {_gib(phase['allocated_gib'])}"


def main() -> None:
    """Measure every placement and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="memory.json and memory.md")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["1.3b", "tiny"], default="1.3b")
    parser.add_argument("--checkpoint", type=Path, help="a folder in the diffusers layout, instead of random weights")
    parser.add_argument("--placements", default="resident,text_off,lean,fp8", help="in this order; fp8 must be the last")
    parser.add_argument("--mode", choices=["none", "both"], default="none", help="references; both needs a VACE checkpoint")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--budget", type=float, default=140, help="seconds; a placement that would not end in them is left out")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of the plugin")
    parser.add_argument("--date", default=dt.datetime.now(tz=dt.UTC).date().isoformat())
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = dict(pair.split("=", 1) for pair in arguments.setting)
    subject = Subject(arguments.checkpoint, arguments.size, device, arguments.out / "data", **options)
    print(f"model ready after {time.monotonic() - begun:.1f} s", flush=True)
    size = (9, 32, 48) if arguments.size == "tiny" else (83, 480, 832)
    case = Case("video", *size, steps=arguments.steps)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "date": arguments.date,
        "weights": "random weights" if subject.random else f"weights of {arguments.checkpoint}",
        "settings": arguments.setting,
        "mode": arguments.mode,
        "case": {"frames": case.frames, "width": case.width, "height": case.height, "steps": case.steps},
        "rows": [],
    }
    expected: dict[str, np.ndarray] = {}
    last = 0.0
    for placement in [Placement(name) for name in arguments.placements.split(",")]:
        started = time.monotonic()
        row: dict[str, Any]
        if arguments.budget - (started - begun) < last:
            row = {"placement": placement.value, "error": "left out: no time"}
        else:
            try:
                row = measured(subject, case, placement, expected, ReferenceMode(arguments.mode))
            except Exception as problem:  # noqa: BLE001  # the other placements are measured all the same
                row = {"placement": placement.value, "error": f"{type(problem).__name__}: {str(problem).splitlines()[0]}"}
            last = time.monotonic() - started
        if device.type == "cuda":
            torch.cuda.empty_cache()
        found["rows"].append(row)
        (arguments.out / "memory.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print({name: value for name, value in row.items() if name != "facts"}, flush=True)
    (arguments.out / "memory.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
