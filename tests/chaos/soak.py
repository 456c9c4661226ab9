"""Growth: resident memory, descriptors and shared memory of the workers over time."""

from __future__ import annotations

import contextlib
import csv
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from tests.chaos.fleet import Fleet

_FEWEST_SAMPLES = 12
_MEMORY_SHARE, _MEMORY_SLACK = 1.10, 8 << 20
_DESCRIPTOR_SLACK = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One worker at one time (seconds since the start); sizes in bytes, ``shared``: its memory files."""

    at: float
    worker: int
    resident: int
    descriptors: int
    shared: int
    threads: int


def sample(fleet: Fleet, started: float) -> list[Sample]:
    """Look at every worker that runs."""
    found = []
    for worker in fleet.alive():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(worker.pid)
            with process.oneshot():
                memory, descriptors, threads = process.memory_info(), process.num_fds(), process.num_threads()
            found.append(
                Sample(time.monotonic() - started, worker.pid, memory.rss, descriptors, _memory_files(worker.pid), threads)
            )
    return found


def _memory_files(pid: int) -> int:
    """Return the bytes of the memory files that a process holds open; 0 where the system does not tell."""
    total = 0
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if "memfd:" in str(entry.readlink()):
                total += entry.stat().st_size
    return total


def growth(samples: Sequence[Sample]) -> list[str]:
    """Compare the second quarter of every worker's life with its last: the first one is for warming up."""
    by_worker: dict[int, list[Sample]] = defaultdict(list)
    for item in samples:
        by_worker[item.worker].append(item)
    found = []
    for worker, series in by_worker.items():
        if len(series) < _FEWEST_SAMPLES:
            continue
        quarter = len(series) // 4
        early, late = series[quarter : 2 * quarter], series[-quarter:]
        for name, share, slack in (
            ("resident", _MEMORY_SHARE, _MEMORY_SLACK),
            ("descriptors", 1.0, _DESCRIPTOR_SLACK),
            ("shared", 1.0, _MEMORY_SLACK),
            ("threads", 1.0, _DESCRIPTOR_SLACK),
        ):
            before, after = (statistics.median(getattr(item, name) for item in part) for part in (early, late))
            if after > before * share + slack:
                found.append(f"worker {worker}: {name} grew from {before:,.0f} to {after:,.0f}")
    return found


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write them as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Sample)])
        writer.writerows(astuple(item) for item in samples)
