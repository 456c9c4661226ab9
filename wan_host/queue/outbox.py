"""Terminal reports that have yet to be delivered. Any worker may deliver any of them; receivers know them by their sequence."""

from __future__ import annotations

import time
from typing import Any

from wan_host.queue.keys import DELIVERY_SECONDS
from wan_host.queue.records import PendingReport, report_from
from wan_host.queue.session import Session

__all__ = ["Outbox"]


class Outbox(Session):
    """The operations on reports."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `Session`."""
        super().__init__(*args, **options)
        self._own: dict[str, tuple[float, PendingReport]] = {}

    async def due_reports(self, limit: int = 10) -> list[PendingReport]:
        """Take reports that are due; for 60 s no other worker delivers them.

        Reports of jobs that this worker has just finished come first, and cost no command.
        """
        now = time.monotonic()
        own = [(until, report) for until, report in self._own.values() if until > now][:limit]
        if own:
            for _, report in own:
                del self._own[report.job_id]
            return [report for _, report in own]
        self._own.clear()
        rows = await self._run("reports", str(limit), str(round(DELIVERY_SECONDS * 1000)))
        return [report_from(row) for row in rows]

    async def report_accepted(self, report: PendingReport, note: str | None = None) -> int:
        """Note that the receiver has it: a published job is completed now. ``note``: what the receiver remarked.

        Returns how many reports are still owed, as `report_retry` and `report_refused` do.
        """
        return await self._outcome(report, "accepted", 0, note or "")

    async def report_retry(self, report: PendingReport, delay: float, error: str) -> int:
        """Let the report become due again in ``delay`` seconds, for any worker."""
        return await self._outcome(report, "retry", delay, error)

    async def report_refused(self, report: PendingReport, error: str) -> int:
        """Note that the receiver will never take it; `JobQueue.retry` sends it anew."""
        return await self._outcome(report, "refused", 0, error)

    async def _outcome(self, report: PendingReport, outcome: str, delay: float, text: str) -> int:
        told = (report.job_id, str(report.sequence), outcome, str(round(delay * 1000)), _tidy(text))
        return int(await self._run("report", *told))

    def _keep_own(self, report: PendingReport) -> None:
        """Remember the report of a job that this worker has finished: it is already leased to it."""
        self._own[report.job_id] = (time.monotonic() + DELIVERY_SECONDS / 2, report)


def _tidy(text: str) -> str:
    """Cut a receiver's words to what a person reads, without half surrogate pairs, which no connection could send."""
    return text[:2000].encode("utf-8", "replace").decode()
