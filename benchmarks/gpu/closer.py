"""A closer look at one question each: where the loop waits for the device, what its kernels cost, how decoding is faster."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from decoders import decoders, handover
from results import tried
from subject import error, warmed

if TYPE_CHECKING:
    from pathlib import Path

    from subject import Case, Subject

STEPS, PASSES, TIMED_STEPS = 3, 2, 8
TEXT_ROWS = 15
"""About what the benchmark's prompt has of a text's 512 rows."""
ROWS, _FAR_APART = 60, 4
BUDGET = 190.0
"""Seconds for all ways to run passes; what does not fit is listed as left out."""
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
    facts = subject.run(variant, replace(case, steps=STEPS))["facts"]  # what the variant puts in stays in
    samples = 2 if facts.get("paired") else 1
    module, device = subject.components.plain, subject.device
    on_gpu = device.type == "cuda"
    shapes = {
        "hidden_states": (subject.config.in_channels, *case.latent),
        "encoder_hidden_states": (512, subject.config.text_dim),
    }
    given = {name: torch.randn(samples, *shape, device=device, dtype=module.dtype) for name, shape in shapes.items()}
    given["encoder_hidden_states"][:, TEXT_ROWS:] = 0  # as a prompt is padded
    given["timestep"] = torch.full((samples,), 500, device=device)
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
    head = f"{variant}, ms a pass{' over both prompts' if samples > 1 else ''}: "
    head += ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in sums.items())
    return "\n".join([head, *(f"{milliseconds:9.3f} {count:6g}  {name[:150]}" for milliseconds, count, name in rows[:ROWS])])


def _by_size(times: list[float]) -> list[list[float]]:
    """Tell a kernel's large calls from its small ones, such as attention to all tokens from attention to the prompt."""
    if max(times) <= _FAR_APART * min(times):
        return [times]
    middle = (min(times) * max(times)) ** 0.5
    return [part for part in ([time for time in times if time < middle], [time for time in times if time >= middle]) if part]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to run `exact`'s passes."""

    name: str
    beside: frozenset[str] = frozenset()
    """What it has that it has not in jobs."""
    options: dict[str, Any] | None = None
    """Of torch.compile."""


WAYS = (
    Way(name="as it is"),
    Way(name="texts", beside=frozenset({"texts"})),
    Way(name="texts, norms", beside=frozenset({"texts", "norms"})),
    Way(name="texts, norms, pairs", beside=frozenset({"texts", "norms", "pairs"})),
    Way(name="as it is, again"),
    Way(name="norms", beside=frozenset({"norms"})),
    Way(name="pairs", beside=frozenset({"pairs"})),
    Way(name="compiled, of two kinds of reduction the faster", options={"triton.multi_kernel": 1}),
    Way(name="compiled, tuned", options={"coordinate_descent_tuning": True}),
)


def passes(subject: Subject, case: Case) -> list[dict[str, Any]]:
    """Return a row for each way: seconds of its steps, memory, and how far its latents are from the first way's, if it has any.

    Each is warmed up, so that the GPU is as hot as at work. The first way comes twice: what the two differ by is noise.
    """
    acceleration = subject.model.acceleration
    compiles_with = acceleration.compiles_with
    expected: list[Any] = []

    def measure(way: Way, row: dict[str, Any]) -> None:
        subject.put_in(way.beside)
        acceleration.forget_compiled()
        acceleration.compiles_with = compiles_with | ({} if way.options is None else {"options": way.options})
        begun = time.perf_counter()
        subject.run("exact", warmed(case))
        row["warm_up_seconds"] = round(time.perf_counter() - begun, 1)
        made = subject.run("exact", replace(case, steps=TIMED_STEPS))
        row |= {
            "step": round(statistics.median(made["step_seconds"]), 4),
            "steps": [round(seconds, 4) for seconds in made["step_seconds"]],
            "stages": made["stages"],
            "allocated_gib": made["allocated_gib"],
            "reserved_gib": made["reserved_gib"],
            "facts": made["facts"],
        }
        if way is WAYS[0]:
            expected.append(made["latents"])
        if expected:
            row["from_the_first"] = error(made["latents"], expected[0])

    rows = tried(WAYS, BUDGET, measure)
    subject.put_in(frozenset())
    acceleration.forget_compiled()
    acceleration.compiles_with = compiles_with
    return rows


def look(subject: Subject, case: Case, out: Path, wanted: set[str]) -> None:
    """Answer the questions in ``wanted`` (waits, kernels, passes, decoders, handover) in ``out``, each once it is answered."""
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
    if "passes" in wanted:
        answered("passes", passes(subject, case))
    if "decoders" in wanted:
        answered("decoders", decoders(subject, case))
    if "handover" in wanted:
        answered("handover", handover(subject, case, out))
        print(found["handover"], flush=True)
