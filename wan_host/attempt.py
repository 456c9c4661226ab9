"""One claimed job, from its payload to the queue's last word on it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import stamina
import structlog

from wan_host import delivery
from wan_host.costs import CostModel
from wan_host.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    InvalidJob,
    JobCancelled,
    LeaseLost,
    QueueUnavailable,
    RetryableError,
    WanHostError,
)
from wan_host.hooks import Hooks
from wan_host.job import Job
from wan_host.metrics import Metrics
from wan_host.payload import parse_payload
from wan_host.queue import Claim, JobQueue, Started
from wan_host.report import Report
from wan_host.reporting import completed_report, failed_report, processing_report, with_urls
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.spool import Spool, SpooledJob
from wan_host.stages import Stages
from wan_host.tracing import Tracer

T = TypeVar("T")
_QUEUE_PATIENCE = 6 * 3600
"""Seconds to wait for a queue server that is down before finished work is left in the spool."""
_RETRY_DELAYS = (2.0, 10.0, 30.0)
_PROBLEMS = {
    "too_large": "the entry is larger than WAN_HOST_MAX_ENTRY_BYTES; send images as URLs, not as data",
    "not_utf8": "the entry is no UTF-8 text",
}
log = structlog.get_logger("wan_host.jobs")


class Attempts:
    """Runs claims. One instance serves a worker; every method may run for several claims at once."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        stages: Stages,
        hooks: Hooks,
        spool: Spool,
        metrics: Metrics,
        settings: Settings,
        costs: CostModel,
        wake_outbox: Callable[[], None],
        tracer: Tracer | None = None,
    ) -> None:
        """``wake_outbox`` is called whenever a terminal report was written."""
        self._tracer = tracer
        self._queue, self._stages, self._hooks, self._spool = queue, stages, hooks, spool
        self._checkpoints = stages.checkpoints
        self._metrics, self._settings, self._costs, self._wake_outbox = metrics, settings, costs, wake_outbox

    async def work(self, claim: Claim, run: Run) -> None:
        """Take a claim to its end: published, failed, cancelled, or handed back for another attempt."""
        await self._to_the_end(claim, run, self._generate)

    async def deliver_spooled(self, claim: Claim, run: Run, spooled: SpooledJob) -> None:
        """Publish and report what an earlier process had finished."""
        log.info("job taken up from the spool", job=run.job_id, attempt=spooled.attempt, stage="spool")
        run.attempt, run.counted = spooled.attempt, claim.attempts

        async def publish(claim: Claim, run: Run) -> None:
            await self._publish(claim, run, spooled)

        await self._to_the_end(claim, run, publish)

    async def _to_the_end(self, claim: Claim, run: Run, work: Callable[[Claim, Run], Awaitable[None]]) -> None:
        """Do the work, and tell the queue how it ended. What is spooled stays where only a later start can deliver it."""
        try:
            try:
                await work(claim, run)
            except (LeaseLost, QueueUnavailable):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it was, the job must end
                await self._conclude(claim, run, error)
        except LeaseLost as error:
            await self._checkpoints.settle(run, seconds=0)  # the copy in the store is another's now
            self._metrics.lease_lost.inc()
            self._count(run, "lease_lost")
            log.warning("job lost to another worker", job=run.job_id, attempt=run.attempt, stage=run.stage, error=str(error))
        except QueueUnavailable as error:
            log.error("queue gone, job is left as it is", job=run.job_id, attempt=run.attempt, stage=run.stage, error=str(error))
            return
        except asyncio.CancelledError:
            if not self._spool.is_complete(run.workdir):
                await asyncio.shield(self._hand_back(claim, run))
            raise
        await asyncio.to_thread(self._spool.remove, run.workdir)

    async def _conclude(self, claim: Claim, run: Run, error: Exception) -> None:
        if not isinstance(error, WanHostError):
            log.error("internal error", job=run.job_id, attempt=run.attempt, stage=run.stage, exc_info=error)
            error = WanHostError(f"internal error in stage {run.stage}: {type(error).__name__}: {error}")
        await self._checkpoints.distrust(run, error)
        if isinstance(error, RetryableError) and run.counted < self._settings.max_attempts:
            delay = _RETRY_DELAYS[min(max(run.counted, 1), len(_RETRY_DELAYS)) - 1]
            await self._release(claim, run, error, delay=delay)
        else:
            await self._finish_failed(claim, run, error)

    async def _generate(self, claim: Claim, run: Run) -> None:
        started = await self._patiently(lambda: self._queue.start(claim))
        run.attempt, run.counted = started.attempt, started.counted
        run.queue_time = max(0.0, started.started_at - claim.queued_at)
        self._metrics.attempts.inc()
        self._metrics.queue_wait_seconds.observe(run.queue_time)
        if started.counted > self._settings.max_attempts:
            raise AttemptsExhausted(
                f"all {self._settings.max_attempts} attempts were lost: the worker or its lane died each time"
            )
        job = run.job = self._resolve(claim, run, now=started.started_at)
        run.expected = self._costs.estimate(job, loaded=self._stages.is_loaded(job.model.name))
        run.user_id = job.user_id
        self._tell_processing(run, job, started)
        await self._publish(claim, run, await self._made(claim, run, job))

    async def _made(self, claim: Claim, run: Run, job: Job) -> SpooledJob:
        """Make a job's files and spool them. The frames end with this call: publishing may last for hours."""
        product = await self._stages.produce(run, job)
        report = completed_report(run, self._settings.worker_id, product.media, product.outcome)
        run.enter("spool")
        spooled = SpooledJob(
            job_id=job.id,
            user_id=job.user_id,
            token=claim.token,
            attempt=run.attempt,
            folder=run.workdir,
            files=product.files,
            report=report,
            claim=dataclasses.asdict(claim),
        )
        await asyncio.to_thread(self._spool.write, spooled)
        return spooled

    def _resolve(self, claim: Claim, run: Run, *, now: float) -> Job:
        """Decide what the payload means; ``now`` is the queue server's time."""
        if claim.problem:
            raise InvalidJob.from_message(f"payload: {_PROBLEMS.get(claim.problem, claim.problem)}")
        payload = parse_payload(claim.payload)
        if claim.seed is None:
            raise InvalidJob("seed", None, "it must be a whole number")
        job = self._stages.resolve(payload, seed=claim.seed)
        run.deadline = run.started + self._settings.deadline_of(job.type)
        for note in job.notes:
            log.info("payload value ignored", job=job.id, attempt=run.attempt, stage=run.stage, note=note)
        if job.expires_at is not None:
            if job.expires_at <= now:
                raise DeadlineExceeded(f"the job expired {now - job.expires_at:.0f} s before it could start")
            run.deadline = min(run.deadline, time.monotonic() + job.expires_at - now)
        if claim.cancelled:
            raise JobCancelled(f"job {job.id} was cancelled before it started")
        return job

    def _tell_processing(self, run: Run, job: Job, started: Started) -> None:
        """Send the report that work has started; it tells progress only, so it is tried once and never waited for."""
        payload = {**processing_report(run, self._settings.worker_id), "sequence": started.sequence}
        report = Report(job_id=run.job_id, attempt=run.attempt, status="processing", sequence=started.sequence, payload=payload)
        prompt = {"prompt": job.request.prompt} if self._settings.log_prompts else {}
        told = {"stage": run.stage, "type": job.type, "queued": round(run.queue_time, 3)}
        log.info("job started", job=run.job_id, attempt=run.attempt, **told, **prompt)

        async def send() -> None:
            answer = await delivery.deliver(self._hooks, report, timeout=self._settings.callback_timeout)
            if answer.outcome != "accepted":
                log.info(
                    "progress report not accepted",
                    job=run.job_id,
                    attempt=report.attempt,
                    stage="report",
                    outcome=answer.outcome,
                    note=answer.note,
                )

        run.background.append(asyncio.create_task(send()))

    async def _publish(self, claim: Claim, run: Run, spooled: SpooledJob) -> None:
        if time.monotonic() - run.leased > self._queue.lease_seconds / 3:  # else the lease itself says that the job is ours
            await self._patiently(lambda: self._queue.check(claim))
        urls = await self._stages.publish(run, spooled.files)
        report = with_urls(spooled.report, urls)
        result = {"assets": report["assets"], "metadata": report["metadata"]}
        await self._settle_progress(run)
        run.ending = True
        await self._patiently(lambda: self._queue.finish(claim, status="published", report=report, result=result))
        self._wake_outbox()
        await self._checkpoints.drop(run)
        self._count(run, "completed")
        if run.job is not None and not run.resumed_at:  # what a checkpoint saved would look like speed
            self._costs.observe(run.job, run.seconds)
            self._costs.save()
        told = {"stage": run.stage, "seconds": round(run.elapsed(), 3), "files": len(urls)}
        log.info("job published", job=run.job_id, attempt=run.attempt, **told)

    async def _finish_failed(self, claim: Claim, run: Run, error: WanHostError) -> None:
        report = failed_report(run, self._settings.worker_id, error)
        told = {"error_type": error.error_type, "message": str(error), "stage": run.stage}
        outcome: Literal["cancelled", "failed"] = "cancelled" if isinstance(error, JobCancelled) else "failed"
        letter = error.error_type if outcome == "failed" else None
        await self._settle_progress(run)
        run.ending = True
        await self._patiently(lambda: self._queue.finish(claim, status=outcome, report=report, error=told, dead_letter=letter))
        self._wake_outbox()
        await self._checkpoints.drop(run)
        self._count(run, outcome)
        if letter is not None:
            self._metrics.dead_letters.labels(letter).inc()
        log.warning("job ended without a result", job=run.job_id, attempt=run.attempt, outcome=outcome, **told)

    async def _release(self, claim: Claim, run: Run, error: RetryableError, *, delay: float) -> None:
        told = {"error_type": error.error_type, "message": str(error), "stage": run.stage}
        await self._checkpoints.settle(run)
        run.ending = True
        await self._patiently(lambda: self._queue.release(claim, reason=error.error_type, defer=delay, error=told))
        self._count(run, "retried")
        log.warning(
            "attempt failed, another follows",
            job=run.job_id,
            attempt=run.attempt,
            stage=run.stage,
            error=str(error),
            seconds=delay,
        )

    async def _hand_back(self, claim: Claim, run: Run) -> None:
        try:
            await self._checkpoints.settle(run)
            run.ending = True
            await self._queue.release(claim, reason="worker stopped", refund=True)
            log.info("job handed back", job=run.job_id, attempt=run.attempt, stage=run.stage)
        except (LeaseLost, QueueUnavailable) as error:
            told = {"attempt": run.attempt, "stage": run.stage, "error": str(error)}
            log.warning("job could not be handed back, its lease will run out", job=run.job_id, **told)
        await asyncio.to_thread(self._spool.remove, run.workdir)

    async def _settle_progress(self, run: Run) -> None:
        """Let a progress report that is on its way end first, so that no receiver sees the states in the wrong order."""
        if run.background:
            await asyncio.wait(run.background, timeout=self._settings.callback_timeout)

    async def _patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a queue operation while the server is down: every one of them is safe to repeat."""
        try:  # nearly always the only try, and a job has four of these
            return await operation()
        except QueueUnavailable as error:
            log.warning("queue operation is repeated until the server answers", error=str(error))
        attempts = stamina.retry_context(
            on=QueueUnavailable, attempts=None, timeout=_QUEUE_PATIENCE, wait_initial=0.2, wait_max=10
        )
        async for attempt in attempts:
            with attempt:
                return await operation()
        raise AssertionError("unreachable: the last attempt raises")

    def _count(self, run: Run, outcome: str) -> None:
        job = run.job
        mode = job.request.reference_mode.value if job else "none"
        job_type, model = (job.type, job.model.name) if job else ("unknown", "none")
        self._metrics.jobs.labels(job_type, mode, model, outcome).inc()
        self._metrics.job_seconds.labels(job_type, mode).observe(run.elapsed())
        for stage, seconds in run.seconds.items():
            self._metrics.stage_seconds.labels(stage, job_type).observe(seconds)
        if self._tracer is not None:
            self._tracer.record(run, outcome)
