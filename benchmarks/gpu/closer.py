"""A closer look at one question each: where the loop waits for the device, what its kernels cost, how the VAE is faster."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from decoders import decoders, handover
from encoders import encoders

if TYPE_CHECKING:
    from pathlib import Path

    from subject import Case, Subject

QUESTIONS = ("waits", "kernels", "decoders", "encoders", "handover")
STEPS, PASSES = 3, 2
TEXT_ROWS = 15
"""About what the benchmark's prompt has of a text's 512 rows."""
ROWS, _FAR_APART = 60, 4
_KINDS = {"attention": ("sdpa", "flash", "attention", "fmha"), "products": ("nvjet", "gemm", "xmma", "cutlass", "wgmma")}
_NO_KERNELS = {"Command Buffer Full", "Activity Buffer Request"}
"""What the profiler notes beside kernels."""


def waits(subject: Subject, case: Case) -> list[str]:
    """Return the lines that made the host wait for the device in three steps of ``exact``, with how often."""
    short = replace(case, steps=STEPS)
    subject.run("exact", short)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            subject.run("exact", short)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{warning.filename}:{warning.lineno}" for warning in seen if "synchronizing" in str(warning.message))
    return [f"{count:4d}  {place}" for place, count in places.most_common()]


def kernels(subject: Subject, case: Case, variant: str) -> str:
    """Return what each kernel takes of a pass of a variant's transformer, the costliest first."""
    subject.run(variant, replace(case, steps=STEPS))  # what the variant puts in stays in
    module, device = subject.components.plain, subject.device
    on_gpu = device.type == "cuda"
    shapes = {
        "hidden_states": (subject.config.in_channels, *case.latent),
        "encoder_hidden_states": (512, subject.config.text_dim),
    }
    given = {name: torch.randn(1, *shape, device=device, dtype=module.dtype) for name, shape in shapes.items()}
    given["encoder_hidden_states"][:, TEXT_ROWS:] = 0  # as a prompt is padded
    given["timestep"] = torch.full((1,), 500, device=device)
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.no_grad(), torch.profiler.profile(activities=activities) as profile:
        for _ in range(PASSES):
            module(**given, return_dict=False)
        wait(device)
    taken: dict[str, list[float]] = {}
    for event in profile.events():
        if (event.device_type.name == "CUDA") == on_gpu and event.name not in _NO_KERNELS:
            taken.setdefault(event.name, []).append((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3)
    rows = [(sum(part) / PASSES, len(part) / PASSES, name) for name, times in taken.items() for part in _by_size(times)]
    rows.sort(reverse=True)
    sums = dict.fromkeys(("attention", "products", "other"), 0.0)
    for milliseconds, _count, name in rows:
        sums[next((kind for kind, marks in _KINDS.items() if any(mark in name for mark in marks)), "other")] += milliseconds
    head = f"{variant}, ms a pass: " + ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in sums.items())
    return "\n".join([head, *(f"{milliseconds:9.3f} {count:6g}  {name[:150]}" for milliseconds, count, name in rows[:ROWS])])


def _by_size(times: list[float]) -> list[list[float]]:
    """Tell a kernel's large calls from its small ones, such as attention to all tokens from attention to the prompt."""
    if max(times) <= _FAR_APART * min(times):
        return [times]
    middle = (min(times) * max(times)) ** 0.5
    return [part for part in ([time for time in times if time < middle], [time for time in times if time >= middle]) if part]


def look(subject: Subject, case: Case, out: Path, wanted: set[str]) -> None:
    """Answer the questions in ``wanted`` (of `QUESTIONS`) in ``out``, each once it is answered."""
    found: dict[str, Any] = {}

    def answered(name: str, answer: Any) -> None:
        found[name] = answer
        (out / "look.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    if "waits" in wanted:
        answered("waits", waits(subject, case))
        print("\n".join(["waits of three steps and what is around them:", *found["waits"]]), flush=True)
    if "kernels" in wanted:
        for variant in ("exact", "fast"):
            table = kernels(subject, case, variant)
            (out / f"kernels_{variant}.txt").write_text(table, encoding="utf-8")
            print(table, flush=True)
    if "decoders" in wanted:
        answered("decoders", decoders(subject, case))
    if "encoders" in wanted:
        answered("encoders", encoders(subject, case))
    if "handover" in wanted:
        answered("handover", handover(subject, case, out))
        print(found["handover"], flush=True)
