"""A closer look at one question each: where the loop waits for the device, what its kernels cost, how decoding is faster."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # a script on torch
from decoders import decoders, handover

if TYPE_CHECKING:
    from pathlib import Path

    from subject import Case, Subject

STEPS = 3
ROWS = 30


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
    """Return the costliest kernels of three steps."""
    short = replace(case, steps=STEPS)
    subject.run(variant, short)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if subject.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        subject.run(variant, short)
    order = "self_cuda_time_total" if subject.device.type == "cuda" else "self_cpu_time_total"
    return str(profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=90))


def look(subject: Subject, case: Case, out: Path, wanted: set[str]) -> dict[str, Any]:
    """Answer the questions in ``wanted``: waits, kernels, decoders, handover."""
    found: dict[str, Any] = {}
    if "waits" in wanted:
        found["waits"] = waits(subject, case)
        print("\n".join(["waits of three steps and what is around them:", *found["waits"]]), flush=True)
    if "kernels" in wanted:
        for variant in ("exact", "fast"):
            (out / f"kernels_{variant}.txt").write_text(kernels(subject, case, variant), encoding="utf-8")
    if "decoders" in wanted:
        found["decoders"] = decoders(subject, case)
    if "handover" in wanted:
        found["handover"] = handover(subject, case, out)
        print(found["handover"], flush=True)
    return found
