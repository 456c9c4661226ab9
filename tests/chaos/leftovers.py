"""What a run of the suite leaves behind: processes, files, shared memory. After a clean stop there is nothing."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos.fleet import Fleet, left_processes

_SHARED_MEMORY = Path("/dev/shm")
_PATIENCE_SECONDS = 5.0


def shared_memory() -> set[str]:
    """Return the names of the shared-memory segments; empty where the system does not list them."""
    return {path.name for path in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()


def leftovers(fleet: Fleet, shared_before: set[str]) -> list[str]:
    """Return what is left, when it has had some seconds to go."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := _found(fleet, shared_before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _found(fleet: Fleet, shared_before: set[str]) -> list[str]:
    found = [f"process {process.pid} is left: {' '.join(process.cmdline())[:200]}" for process in left_processes(fleet.folder)]
    for data in fleet.data_dirs():
        # checkpoints of jobs that ended elsewhere only grow old
        allowed = {"spool", "queue", "costs.json", "checkpoints"} | {log.name for log in fleet.logs}
        found += [f"{path} is left" for path in data.iterdir() if path.name not in allowed]
        found += [f"{path} is left in the spool" for path in (data / "spool").iterdir()]
    found += [f"{path} is left" for name in ("tmp", "run") for path in (fleet.folder / name).rglob("*")]
    new = shared_memory() - shared_before
    return found + [f"shared memory {name} is left" for name in sorted(new) if not _is_mapped(name)]


def _is_mapped(name: str) -> bool:
    """Tell whether a living process, one of somebody else's then, uses the segment."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"{_SHARED_MEMORY}/{name}" in maps.read_text():
                return True
        except OSError:
            continue
    return False
