"""What a worker knows of its own disk."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from wan_host.readiness import Readiness
from wan_host.settings import load_settings


async def test_a_volume_that_goes_away_for_a_moment_is_told_and_ends_no_worker(monkeypatch):
    hooks = SimpleNamespace(registry=SimpleNamespace(missing=lambda _: {}, models={}))
    readiness, faults = Readiness(load_settings(), hooks), [OSError(116, "Stale file handle")]

    def usage(path):
        if faults:
            raise faults.pop()
        return SimpleNamespace(free=1 << 60)

    monkeypatch.setattr("shutil.disk_usage", usage)
    monkeypatch.setattr("wan_host.readiness._DISK_CHECK_SECONDS", 0.05)
    watching = asyncio.create_task(readiness.watch_disk())
    await asyncio.sleep(0.02)
    assert any("Stale file handle" in problem for problem in readiness.problems([], [], stopping=False))
    await asyncio.sleep(0.2)
    assert not any(problem.startswith("disk") for problem in readiness.problems([], [], stopping=False))
    watching.cancel()
