"""What people and pages ask of the queue, and what they may do to jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from wan_host.queue.records import DeadLetter, Depth, JobState, Poll, WorkerState, dead_letter_from, job_from, worker_from
from wan_host.queue.session import Session, as_json

__all__ = ["Inspection"]

_TAKEN_IN: Final = 10_000
_MOVED_A_ROUND: Final = 500
_ASKED: Final = 500
_COUNTED: Final = 1000


class Inspection(Session):
    """The operations of the command line and of HTTP."""

    async def cancel(self, job_id: str, report: Mapping[str, Any] | None = None) -> str:
        """Cancel a job.

        Returns ``cancelled`` (it waited: ``report``, or a minimal one, goes to the outbox), ``cancelling`` (a worker has it, and
        learns it by its next poll or renewal), ``finished`` (too late) or ``unknown``.
        """
        text = as_json(report if report is not None else self._cancelled_report(job_id))
        answer = str(await self._run("cancel", job_id, text))
        if answer == "unknown":
            await self.take_in()  # or somebody else just has: ask again in any case
            answer = str(await self._run("cancel", job_id, text))
        return answer

    async def retry(self, job_id: str) -> bool:
        """Run a failed or cancelled job anew, or send a refused report anew; False if there is nothing of that kind."""
        return bool(await self._run("retry", job_id))

    async def job(self, job_id: str) -> JobState | None:
        """Return a job's state, None if the queue does not know it (any more)."""
        rows = await self._run("jobs", "", "1", job_id)
        if not rows:
            await self.take_in()  # as in `cancel`
            rows = await self._run("jobs", "", "1", job_id)
        return job_from(rows[0]) if rows else None

    async def jobs(self, *, limit: int = 50, status: str | None = None) -> list[JobState]:
        """Return jobs, newest first; with ``status`` those among the newest 10,000 that have it."""
        return [job_from(row) for row in await self._run("jobs", status or "", str(limit))]

    async def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Return what the queue knows of these jobs, without their payloads: a command for every 500, what is unknown left out.

        Entries that producers have pushed and nobody has taken in are unknown; `take_in` takes them in.
        """
        rows = [
            row for start in range(0, len(job_ids), _ASKED) for row in await self._run("states", *job_ids[start : start + _ASKED])
        ]
        return {row[0]: job_from(row) for row in rows}

    async def ahead(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Return how many waiting jobs are before each of these, at most 1,000; those that do not wait are left out."""
        return {job_id: int(number) for job_id, number in await self._run("ahead", str(_COUNTED), *job_ids)}

    async def take_in(self) -> None:
        """Take in what producers have pushed, so that it is known: 10,000 entries, or a few more."""
        taken, moved = 0, 1
        while moved and taken < _TAKEN_IN:  # where entries are large a round ends before it has moved all that it may
            moved = (await self._visit(_MOVED_A_ROUND)).moved
            taken += moved

    async def dead_letters(self, limit: int = 50) -> list[DeadLetter]:
        """Return what was given up, newest first."""
        return [dead_letter_from(row) for row in await self._run("dead", str(limit))]

    async def workers(self) -> list[WorkerState]:
        """Return the workers that were seen within a day, the latest first."""
        now, rows = await self._run("workers", "")
        return [worker_from(row, int(now)) for row in rows]

    async def depth(self) -> Depth:
        """Return how much there is to do."""
        unmoved, waiting, delayed, leased, reports, dead = (int(number) for number in await self._run("depth"))
        return Depth(unmoved + waiting, delayed, leased, reports, dead)

    async def _visit(self, moved: int) -> Poll:
        """Poll without claiming, so that entries are moved from the producers' list."""
        raise NotImplementedError

    def _cancelled_report(self, job_id: str) -> dict[str, Any]:
        return {
            "job_id": job_id,
            "worker_id": self.worker_id,
            "status": "failed",
            "assets": [],
            "error_message": "The job was cancelled before it was started.",
            "metadata": {"error_type": "cancelled", "attempt": 0},
        }
