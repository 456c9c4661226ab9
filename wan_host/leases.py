"""The leases of a worker: every claim that it works on, from its begin or adoption to its release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog

from wan_host.attempt import Attempts
from wan_host.errors import PermanentError, QueueUnavailable
from wan_host.lane_pool import LanePool
from wan_host.queue import Claim, JobQueue
from wan_host.readiness import Readiness
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.spool import Spool, SpooledJob

_PROGRESS_SECONDS = 1.0
log = structlog.get_logger("wan_host.leases")


@dataclass(slots=True, eq=False)
class Held:
    """A claim that this worker works on."""

    claim: Claim
    run: Run
    task: asyncio.Task[None] | None = None
    stage: str = ""
    """The last one that the log tells of."""


class Leases:
    """The claims of this moment. Its loops keep them, and take over those of processes that died."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        attempts: Attempts,
        spool: Spool,
        pool: LanePool,
        settings: Settings,
        readiness: Readiness,
        describe: Callable[[], dict[str, str]],
        changed: Callable[[], None],
    ) -> None:
        """``describe``: what the fleet's list shows of this worker. ``changed`` is called when a run enters a stage or ends."""
        self._queue, self._attempts, self._spool, self._pool = queue, attempts, spool, pool
        self._settings, self._readiness, self._describe, self._changed = settings, readiness, describe, changed
        self._held: dict[str, Held] = {}
        self.adopted = False
        """Whether it is known by now what dead processes have left."""

    def runs(self) -> list[Run]:
        """Return the runs of this moment."""
        return [held.run for held in self._held.values()]

    def begin(self, claim: Claim, *, leased: float) -> None:
        """Work on a claim that was asked for at ``leased`` (monotonic seconds)."""
        run = self._new_run(claim, user_id="")
        run.leased = leased
        run.workdir = self._spool.folder(claim.job_id, claim.token)
        self._hold(claim, run, self._attempts.work)

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel those of these jobs that run here."""
        for job_id in job_ids:
            held = self._held.get(job_id)
            if held is not None and not held.run.cancelled:
                log.info("job is being cancelled", job=job_id, attempt=held.run.attempt, stage=held.run.stage)
                await self._pool.cancel(held.run)

    async def settle(self) -> None:
        """Let runs end within the grace time, then hand back what is left."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        if tasks:
            log.info("waiting for running jobs", jobs=len(tasks), seconds=self._settings.stop_grace)
            _, late = await asyncio.wait(tasks, timeout=self._settings.stop_grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def keep_adopting(self) -> None:
        """Deliver what processes left that died, looked for often enough to find it before its lease runs out."""
        orphans: list[SpooledJob] = []
        while True:
            try:
                orphans += await asyncio.to_thread(self._spool.take_over)
                while orphans:
                    await self._adopt(orphans[-1])
                    orphans.pop()
                self.adopted = True
                self._changed()
            except (QueueUnavailable, PermanentError, OSError) as error:
                log.warning("spooled jobs wait", jobs=len(orphans), error=str(error))
            await asyncio.sleep(self._queue.lease_seconds / 3)

    async def _adopt(self, spooled: SpooledJob) -> None:
        try:
            lost = Claim(**spooled.claim) if spooled.claim else None
        except TypeError:  # spooled by another version: only a queue that has lost its memory would need it
            lost = None
        claim = await self._queue.adopt(spooled.job_id, spooled.token, lost=lost)
        if claim is None:
            log.info("spooled job is in other hands now, dropped", job=spooled.job_id, attempt=spooled.attempt, stage="spool")
            self._spool.remove(spooled.folder)
            return
        run = self._new_run(claim, user_id=spooled.user_id)
        run.workdir = spooled.folder
        run.enter("spool")
        self._hold(claim, run, partial(self._attempts.deliver_spooled, spooled=spooled))

    def _new_run(self, claim: Claim, *, user_id: str) -> Run:
        return Run(
            job_id=claim.job_id,
            user_id=user_id,
            token=claim.token,
            attempt=0,
            deadline=time.monotonic() + self._settings.job_deadline,
            workdir=self._settings.data_dir,
        )

    def _hold(self, claim: Claim, run: Run, work: Callable[[Claim, Run], Awaitable[None]]) -> None:
        earlier = self._held.get(claim.job_id)
        held = self._held[claim.job_id] = Held(claim, run)
        held.task = asyncio.create_task(self._work(claim, run, work, earlier))
        held.task.add_done_callback(lambda task: self._release(held, task))
        run.on_change = lambda _: self._moved(held)

    async def _work(self, claim: Claim, run: Run, work: Callable[[Claim, Run], Awaitable[None]], earlier: Held | None) -> None:
        """Work on a claim; a run whose lease ran out here, so that this worker could claim its job again, ends before."""
        if earlier is not None and earlier.task is not None:
            log.warning("job was claimed again while it ran here, its earlier run is stopped", job=claim.job_id)
            await self._pool.cancel(earlier.run)
            await asyncio.wait({earlier.task})
        await work(claim, run)

    def _moved(self, held: Held) -> None:
        run = held.run
        if run.stage != held.stage:
            held.stage = run.stage
            log.info("job stage", job=run.job_id, attempt=run.attempt, stage=run.stage)
        self._changed()

    def _release(self, held: Held, task: asyncio.Task[None]) -> None:
        job_id = held.claim.job_id
        if self._held.get(job_id) is held:
            del self._held[job_id]
        self._changed()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a run ended with an unexpected error", job=job_id, exc_info=error)

    async def keep_renewing(self) -> None:
        """Renew every lease at a third of its length, while its run moves; more often where that costs nothing, for progress."""
        longest = self._queue.lease_seconds / 3
        pause = longest if self._queue.backend == "upstash" else min(longest, _PROGRESS_SECONDS)
        while True:
            await asyncio.sleep(pause)
            held = [item for item in self._held.values() if self._moves(item.run)]
            if not held:
                continue
            asked = time.monotonic()
            try:
                progress = {item.run.job_id: item.run.progress() for item in held}
                standing = await self._queue.renew([item.claim for item in held], progress, worker=self._describe())
            except (QueueUnavailable, PermanentError) as error:  # permanent for the server as it is; people mend servers
                self._readiness.queue_failed(str(error))
                continue
            self._readiness.queue_answered()
            for item in held:
                if standing[item.run.job_id] != "lost":
                    item.run.leased = asked
            ended = {  # while the queue answered, or about to
                item.run.job_id for item in held if item.run.ending or self._held.get(item.run.job_id) is not item
            }
            lost = [job_id for job_id, state in standing.items() if state == "lost" and job_id not in ended]
            if lost:
                log.warning("leases lost, their runs are stopped", jobs=lost)
            await self.cancel([*lost, *(job_id for job_id, state in standing.items() if state == "cancelled")])

    def _moves(self, run: Run) -> bool:
        """Tell whether a run makes progress; one that stands still longer than any stage may loses its lease."""
        if run.stage == "waiting":
            return True
        settings = self._settings
        longest = max(settings.stage_timeout, settings.load_timeout, settings.step_timeout, settings.publish_timeout)
        return time.monotonic() - run.last_progress < longest + settings.cancel_grace
