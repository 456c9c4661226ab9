"""Delivering reports: the outbox of the queue for reports that must arrive, and one try for those that only tell progress."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from wan_host.context import StageContext
from wan_host.errors import QueueUnavailable
from wan_host.hooks import Hooks
from wan_host.metrics import Metrics
from wan_host.queue import JobQueue, PendingReport
from wan_host.report import Delivery, Report
from wan_host.threads import Crowded, StrangerThreads

_BATCH = 16
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 300.0
_RETRY_SLACK = 0.05
_QUEUE_PAUSE = 5.0
_MOST_DOUBLINGS = 10
_NOTE_CHARACTERS = 500
_LOG = "log"
"""The host's own sink: a line in the log that this process writes anyway, and nothing to wait for in a thread."""
_threads = StrangerThreads(limit=64)
"""Deliveries at a time to one sink: a batch, the reports of progress, and what hangs."""
log = structlog.get_logger("wan_host.reports")


async def deliver(hooks: Hooks, report: Report, *, timeout: float) -> Delivery:
    """Send a report to every sink and return what they made of it together.

    Retried while one of them may still take it; refused if one never will; accepted otherwise.
    """
    sinks = hooks.plugins_with("deliver_report")
    answers = await asyncio.gather(*(_deliver_one(hooks, sink, report, timeout) for sink in sinks))
    return _together([answer for answer in answers if answer is not None])


async def _deliver_one(hooks: Hooks, sink: str, report: Report, timeout: float) -> Delivery | None:
    context = StageContext(
        job_id=report.job_id, user_id="", workdir=Path(tempfile.gettempdir()), deadline=time.monotonic() + timeout
    )
    if sink == _LOG:
        return hooks.deliver_report(sink, report, context)
    try:
        async with asyncio.timeout(timeout):
            return await _threads.run(sink, lambda: hooks.deliver_report(sink, report, context))
    except TimeoutError:
        context.cancel()
        return Delivery(outcome="retry", note=f"{sink}: no answer within {timeout:g} s")
    except Crowded as error:
        return Delivery(outcome="retry", note=str(error))


def _together(answers: Sequence[Delivery]) -> Delivery:
    for outcome in ("retry", "refused"):
        matching = [answer for answer in answers if answer.outcome == outcome]
        if matching:
            waits = [answer.retry_after for answer in matching if answer.retry_after is not None]
            waits = [seconds for seconds in waits if math.isfinite(seconds)]
            return Delivery(outcome=matching[0].outcome, note=_note(matching), retry_after=max(waits, default=None))
    return Delivery(outcome="accepted", note=_note(answers))


def _note(answers: Sequence[Delivery]) -> str:
    return "; ".join(str(answer.note)[:_NOTE_CHARACTERS] for answer in answers if answer.note)


class Outbox:
    """Delivers the terminal reports that wait in the queue, whoever wrote them."""

    def __init__(self, *, queue: JobQueue, hooks: Hooks, metrics: Metrics, timeout: float, give_up_after: float) -> None:
        """``timeout``: seconds for one delivery; ``give_up_after``: seconds after which a report is kept but no longer sent."""
        self._queue, self._hooks, self._metrics = queue, hooks, metrics
        self._timeout, self._give_up_after = timeout, give_up_after
        self._due = asyncio.Event()
        self._delivering = False
        self._server_offset = time.time() - time.monotonic()

    def wake(self) -> None:
        """Say that a report may be due."""
        self._due.set()

    @property
    def busy(self) -> bool:
        """Whether reports are being delivered, or may be due."""
        return self._delivering or self._due.is_set()

    def set_clock(self, server_time: float) -> None:
        """Learn the queue server's time: the ages of reports are reckoned by it."""
        self._server_offset = server_time - time.monotonic()

    async def run(self) -> None:
        """Deliver whenever something is due, for ever: no fault of a single report may end it."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._delivering = True
            try:
                await self.drain()
            except QueueUnavailable as error:
                log.warning("outbox cannot be read", error=str(error))
                self._wake_in(_QUEUE_PAUSE)
            except Exception:
                log.exception("outbox failed")
                self._wake_in(_QUEUE_PAUSE)
            finally:
                self._delivering = False

    async def drain(self) -> None:
        """Deliver everything that is due now."""
        while reports := await self._queue.due_reports(_BATCH):
            answers = await asyncio.gather(*(self._deliver(report) for report in reports), return_exceptions=True)
            faults = [answer for answer in answers if isinstance(answer, BaseException)]
            if faults:
                raise faults[0]
            if len(reports) < _BATCH:
                return

    def _wake_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.wake)

    async def _deliver(self, pending: PendingReport) -> None:
        report = Report(
            job_id=pending.job_id,
            attempt=pending.attempt,
            status="completed" if pending.report.get("status") == "completed" else "failed",
            sequence=pending.sequence,
            payload=pending.report,
        )
        started = time.monotonic()
        answer = await deliver(self._hooks, report, timeout=self._timeout)
        job_type = str((pending.report.get("metadata") or {}).get("job_type", "unknown"))
        self._metrics.stage_seconds.labels("report", job_type).observe(time.monotonic() - started)
        told = {"job": report.job_id, "attempt": report.attempt, "stage": "report", "status": report.status, "note": answer.note}
        age = time.monotonic() + self._server_offset - pending.since
        if answer.outcome == "accepted":
            owed = await self._queue.report_accepted(pending, answer.note or None)
            log.info("report accepted", **told)
        elif answer.outcome == "refused":
            owed = await self._queue.report_refused(pending, answer.note)
            log.error("report refused", **told)
        elif age > self._give_up_after:
            owed = await self._queue.report_refused(pending, f"given up after {age / 3600:.1f} hours: {answer.note}")
            log.error("report given up", **told)
        else:
            delay = max(answer.retry_after or 0.0, min(_FIRST_DELAY * 2 ** min(pending.tries, _MOST_DOUBLINGS), _LONGEST_DELAY))
            delay = min(delay, max(self._give_up_after - age, _FIRST_DELAY))  # one last try when its time is up
            owed = await self._queue.report_retry(pending, delay, answer.note)
            self._wake_in(delay + _RETRY_SLACK)
            log.warning("report will be sent again", **told, seconds=delay)
        self._metrics.report_pending.set(owed)  # a busy worker's next poll may be minutes away
