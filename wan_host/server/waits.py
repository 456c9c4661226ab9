"""How long a waiting job waits: how many are before it, and an estimate from what jobs took on this worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wan_host.queue import JobQueue
from wan_host.worker import Worker

_FLEET_SECONDS = 15.0
"""How long the number of lanes in the fleet is believed."""


@dataclass(frozen=True, slots=True)
class Wait:
    """``position``: 1 is next. ``seconds``: until it starts, None where no job was done here yet."""

    position: int
    seconds: float | None


class Waits:
    """One instance serves a worker."""

    def __init__(self, worker: Worker) -> None:
        """Nothing is asked yet."""
        self._worker = worker
        self._lanes, self._asked = 1, float("-inf")

    async def of(self, queue: JobQueue, job_ids: Sequence[str]) -> Mapping[str, Wait]:
        """Return the waits of those of these jobs that wait."""
        ahead = await queue.ahead(job_ids) if job_ids else {}
        if not ahead:
            return {}
        if time.monotonic() - self._asked > _FLEET_SECONDS:
            self._lanes, self._asked = await self._count_lanes(queue), time.monotonic()
        return {job_id: Wait(position=number + 1, seconds=self._seconds(number)) for job_id, number in ahead.items()}

    def _seconds(self, ahead: int) -> float | None:
        """Share the work that is before a job among the lanes; those of other workers are taken to be half done with theirs."""
        mean = self._worker.costs.mean_seconds()
        if mean is None:
            return None
        own = [mean / 2 if (left := run.time_left()) is None else left for run in self._worker.runs()]
        others = max(0, self._lanes - self._worker.pool.generate_lanes)
        return round((sum(own) + others * mean / 2 + ahead * mean) / self._lanes, 1)

    async def _count_lanes(self, queue: JobQueue) -> int:
        told = [state.about.get("lanes", "") for state in await queue.workers() if state.alive]
        return max(self._worker.pool.generate_lanes, sum(int(lanes) for lanes in told if lanes.isdigit()))
