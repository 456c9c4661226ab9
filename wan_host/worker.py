"""The worker: starts everything, claims jobs, watches itself, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from wan_host import __version__
from wan_host.attempt import Attempts
from wan_host.capacity import jobs_to_claim
from wan_host.connection import connect
from wan_host.costs import CostModel
from wan_host.delivery import Outbox
from wan_host.errors import PermanentError, QueueUnavailable
from wan_host.hooks import Hooks
from wan_host.hookspecs import WorkerInfo
from wan_host.lane_pool import LanePool
from wan_host.lanes.devices import list_devices
from wan_host.leases import Leases
from wan_host.metrics import Metrics
from wan_host.queue import JobQueue, Poll
from wan_host.readiness import Readiness
from wan_host.retention import Retention
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.spool import Spool
from wan_host.stages import Stages
from wan_host.threads import StrangerThreads
from wan_host.tracing import open_tracer

_IDLE_WAIT = 5.0
_BUSY_WAIT = 0.25
_RECONNECT_SECONDS = 2.0
log = structlog.get_logger("wan_host.worker")


class Worker:
    """One worker process. ``run`` returns when it has stopped."""

    def __init__(self, *, settings: Settings, hooks: Hooks, once: bool = False) -> None:
        """``once``: stop when the queue is empty and everything is delivered."""
        self.settings, self.hooks, self.metrics = settings, hooks, Metrics()
        self.devices = list_devices().choose(settings.devices)
        self.pool = LanePool(devices=self.devices, hooks=hooks, settings=settings, metrics=self.metrics)
        self.started_at = time.time()
        self.costs = CostModel(settings.data_dir / "costs.json", device=self.devices[0].label)
        self._once, self._draining = once, False
        self._threads = StrangerThreads(limit=2)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._tracer = open_tracer(settings)
        self._readiness = Readiness(settings, hooks)
        self._busy_until = time.monotonic()
        self.idle_too_long = False
        self._queue: JobQueue | None = None
        self._leases: Leases | None = None
        self._commands_counted = 0

    @property
    def stopping(self) -> bool:
        """Whether the worker has been asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Take no more jobs; finish or hand back the running ones within the grace time."""
        self._stopping.set()
        self._changed.set()

    def drain(self) -> None:
        """Take no more jobs; deliver what dead processes have left, let running jobs end in their own time, then stop."""
        if not self._draining:
            log.info("draining: no more jobs are taken")
        self._draining = True
        self._changed.set()

    def abandon(self) -> None:
        """Prepare to end this process at once: lanes end by themselves, leases of running jobs run out."""
        if self._queue is not None:
            self._queue.abandon()

    def problems(self) -> list[str]:
        """Return why this worker is not ready for jobs; empty when it is."""
        return self._readiness.problems(self.pool.states(), self.runs(), stopping=self.stopping or self._draining)

    def refresh_metrics(self) -> None:
        """Set the metrics that are read when somebody asks."""
        metrics, states = self.metrics, self.pool.states()
        metrics.build_info.labels(__version__).set(1)
        if self._queue is not None:
            metrics.queue_commands.labels(self._queue.backend).inc(self._queue.commands - self._commands_counted)
            self._commands_counted = self._queue.commands
        metrics.plugin_info.clear()  # a plugin's status is a label and can change
        for record in self.hooks.registry.records:
            metrics.plugin_info.labels(record.name, record.version, record.status).set(1)
        loaded = {name for state in states for name in state.loaded}
        for name in self.hooks.models():
            metrics.model_loaded.labels(name).set(name in loaded)
        for device in {state.device for state in states}:
            memory = [state.memory for state in states if state.device == device]
            for kind in ("used", "reserved", "peak"):
                metrics.vram_bytes.labels(device, kind).set(sum(getattr(item, kind) for item in memory))
            metrics.vram_bytes.labels(device, "total").set(max(item.total for item in memory))

    def runs(self) -> list[Run]:
        """Return the runs of this moment."""
        return self._leases.runs() if self._leases is not None else []

    def run_of(self, job_id: str) -> Run | None:
        """Return the run of a job, if it is here."""
        return next((run for run in self.runs() if run.job_id == job_id), None)

    @property
    def queue(self) -> JobQueue | None:
        """The queue, once it is connected."""
        return self._queue

    async def cancel_job(self, queue: JobQueue, job_id: str) -> str:
        """Cancel a job wherever it is, one that runs here at once; the answer is `JobQueue.cancel`'s."""
        answer = await queue.cancel(job_id)
        if answer == "cancelling" and self._leases is not None:
            await self._leases.cancel([job_id])
        return answer

    def describe(self) -> dict[str, str]:
        """Return what the fleet's list shows of this worker."""
        stages = ", ".join(f"{run.job_id}: {run.stage}" for run in self.runs())
        devices = ", ".join(f"{device.name} ({device.label})" for device in self.devices)
        lanes = 0 if self._draining or not self._readiness.has_room else self.pool.generate_lanes  # those that take jobs
        return {"version": __version__, "devices": devices, "doing": stages, "url": self.settings.url, "lanes": str(lanes)}

    async def run(self, serve: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Work until ``stop`` (or, with ``once``, until the queue is empty). ``serve`` runs beside, for as long as the worker."""
        settings = self.settings
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        spool = Spool(settings.spool_path)
        spool.open()
        server = asyncio.create_task(serve()) if serve is not None else None
        queue = self._queue = await self._connect()
        if queue is None:
            spool.close()
            await _end(server)
            return
        stages = Stages(hooks=self.hooks, pool=self.pool, settings=settings)
        outbox = Outbox(
            queue=queue,
            hooks=self.hooks,
            metrics=self.metrics,
            timeout=settings.callback_timeout,
            give_up_after=settings.report_hours * 3600,
        )
        attempts = Attempts(
            queue=queue,
            stages=stages,
            hooks=self.hooks,
            spool=spool,
            metrics=self.metrics,
            settings=settings,
            costs=self.costs,
            tracer=self._tracer,
            wake_outbox=outbox.wake,
        )
        leases = self._leases = Leases(
            queue=queue,
            attempts=attempts,
            spool=spool,
            pool=self.pool,
            settings=settings,
            readiness=self._readiness,
            describe=self.describe,
            changed=self._changed.set,
        )
        retention = Retention(queue=queue, settings=settings, readiness=self._readiness)
        loops: list[asyncio.Task[None]] = []
        try:
            await self.pool.start()
            self._readiness.lanes_started = True
            await self._readiness.look_at_disk()  # before the first claim: a worker that starts without room takes no job
            await retention.look_at_spool()
            background = (
                leases.keep_renewing(),
                leases.keep_adopting(),
                outbox.run(),
                self._readiness.watch_disk(),
                self._readiness.watch_queue(queue),
                retention.keep_limits(),
            )
            loops = [asyncio.create_task(loop) for loop in background]
            for loop in loops:
                loop.add_done_callback(self._loop_ended)
            outbox.wake()
            await self._tell_plugins("worker_started")
            await self._claim_loop(queue, leases, outbox)
            await self._tell_plugins("worker_stopping")
            await leases.settle()
            # what is left is delivered by any other worker
            with contextlib.suppress(QueueUnavailable, PermanentError, TimeoutError):
                async with asyncio.timeout(settings.stop_grace if self.stopping else None):
                    await outbox.drain()
        finally:
            for loop in loops:
                loop.cancel()
            await self.pool.stop()
            self.costs.save(now=True)
            spool.close()
            await queue.aclose()
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.close)
            await _end(server)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """Stop a worker that has lost one of its loops: without renewals, say, it would only do what others do again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a loop of the worker failed, it stops", exc_info=error)
            self.stop()

    async def _connect(self) -> JobQueue | None:
        """Open the queue, however long its server needs; None if the worker is stopped before."""
        while not self._stopping.is_set():
            try:
                return await connect(self.settings)
            except QueueUnavailable as error:
                self._readiness.queue_failed(str(error))
                await self._wait_for_change(_RECONNECT_SECONDS)
        return None

    async def _claim_loop(self, queue: JobQueue, leases: Leases, outbox: Outbox) -> None:
        self._busy_until = time.monotonic()
        while not self._stopping.is_set():
            if self.runs():
                self._busy_until = time.monotonic()
            if self._draining and leases.adopted and not self.runs():
                return
            wanted = self._capacity(outbox)
            idle = not self.runs() and not self._readiness.has_room and not self._draining  # it polls, so that others see it live
            if wanted == 0 and not idle:
                await self._wait_for_change(_BUSY_WAIT)
                continue
            try:
                asked = time.monotonic()
                poll = await queue.poll(claims=wanted, worker=self.describe())
            except (QueueUnavailable, PermanentError) as error:  # permanent for the server as it is; people mend servers
                self._readiness.queue_failed(str(error))
                await self._wait_for_change(_RECONNECT_SECONDS)
                continue
            self._note_poll(poll)
            outbox.set_clock(poll.server_time)
            if poll.due_reports:
                outbox.wake()
            await leases.cancel(poll.cancelled)
            for claim in poll.claims:
                leases.begin(claim, leased=asked)
            if poll.claims:
                continue
            if self._is_done(poll):
                return
            await self._idle(queue)

    def _is_done(self, poll: Poll) -> bool:
        """Tell whether there is nothing left to do for a worker that ends by itself."""
        if self.runs() or poll.depth:
            self._busy_until = time.monotonic()
            return False
        longest = self.settings.idle_seconds
        self.idle_too_long = longest is not None and time.monotonic() - self._busy_until >= longest
        if self.idle_too_long:
            log.info("idle for too long, the worker ends", seconds=longest)
        return self._once or self.idle_too_long

    def _capacity(self, outbox: Outbox) -> int:
        """How many jobs to claim now."""
        if self._draining or not self._readiness.has_room:
            return 0
        runs, lanes = self.runs(), self.pool.generate_lanes
        if not self.settings.overlap:
            return 0 if outbox.busy else max(0, lanes - len(runs))
        return jobs_to_claim(runs, lanes=lanes, prefetch_seconds=self.settings.prefetch_seconds)

    async def _idle(self, queue: JobQueue) -> None:
        waiting = asyncio.create_task(queue.wait(_IDLE_WAIT))
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in {waiting, stopping} - done:
            task.cancel()
        await asyncio.gather(waiting, stopping, return_exceptions=True)
        if waiting in done and isinstance(error := waiting.exception(), QueueUnavailable):
            self._readiness.queue_failed(str(error))
            await self._wait_for_change(1.0)

    async def _wait_for_change(self, timeout: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    def _note_poll(self, poll: Poll) -> None:
        self._readiness.queue_answered()
        self.metrics.queue_depth.set(poll.depth)
        self.metrics.report_pending.set(poll.pending_reports)
        if poll.state_lost:
            log.error("the queue server came back empty: jobs that waited there are lost; running ones will be delivered")
        for entry in poll.poisoned:
            self.metrics.dead_letters.labels(entry.reason).inc()
            log.error("entry went to the dead letters", reason=entry.reason, bytes=entry.size, letter=entry.letter)
        for duplicate in poll.duplicates:
            log.warning("job was pushed again", job=duplicate.job_id, status=duplicate.status, action=duplicate.action)

    async def _tell_plugins(self, hook: str) -> None:
        settings = self.settings
        info = WorkerInfo(
            worker_id=settings.worker_id,
            version=__version__,
            host=settings.bind_host,
            port=settings.port,
            url=settings.url,
            devices=tuple(device.name for device in self.devices),
        )
        for plugin in self.hooks.plugins_with(hook):
            try:
                async with asyncio.timeout(settings.callback_timeout):
                    await self._threads.run(plugin, partial(getattr(self.hooks, hook), plugin, info))
            except Exception as error:  # noqa: BLE001  # the hooks' contract: logged, and the worker goes on
                log.error("plugin hook failed", plugin=plugin, hook=hook, error=f"{type(error).__name__}: {error}")


async def _end(server: asyncio.Task[None] | None) -> None:
    """Stop the HTTP server; what it raised is worth a line."""
    if server is None:
        return
    server.cancel()
    (outcome,) = await asyncio.gather(server, return_exceptions=True)
    if isinstance(outcome, Exception):
        log.error("the HTTP server ended with an error", exc_info=outcome)
