"""Whether a worker can take jobs, from what was seen and not from what was hoped."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence

import structlog

from wan_host.errors import WanHostError
from wan_host.hooks import Hooks
from wan_host.lanes.state import LaneState
from wan_host.queue import JobQueue
from wan_host.run import Run
from wan_host.settings import Settings

_DISK_CHECK_SECONDS = 2.0
_PING_SECONDS, _PING_PATIENCE = 2.0, 5.0
_UNANSWERED_SECONDS = 6.0
"""A library that holds the interpreter's lock while it is loaded makes a lane silent for a moment."""
_SILENT_SECONDS, _SILENT_STEPS = 7.0, 5
log = structlog.get_logger("wan_host.worker")


class Readiness:
    """What the loops of a worker have seen last."""

    def __init__(self, settings: Settings, hooks: Hooks) -> None:
        """Nothing has been seen yet, so nothing is ready."""
        self._settings, self._registry = settings, hooks.registry
        self._queue_problem = "not connected yet"
        self._ping_problem = ""
        self._disk_free: int | None = None
        self._disk_problem = ""
        self._spool_problem = ""
        self.lanes_started = False

    def queue_answered(self) -> None:
        """Note that the queue server did what it was asked."""
        if self._queue_problem:
            log.info("queue available")
        self._queue_problem = ""

    def queue_failed(self, problem: str) -> None:
        """Note that it did not."""
        if problem != self._queue_problem:
            log.warning("queue unavailable", error=problem)
        self._queue_problem = problem

    def spool_checked(self, problem: str) -> None:
        """Note whether the spool is over its quota; ``problem`` is empty where it is not."""
        if bool(problem) != bool(self._spool_problem):
            log.warning("no room to spool more work", problem=problem) if problem else log.info("room to spool work again")
        self._spool_problem = problem

    @property
    def has_room(self) -> bool:
        """Whether there is room on the disk, and in the spool's quota, for another job."""
        return not self._disk_full and not self._spool_problem

    @property
    def _disk_full(self) -> bool:
        return self._disk_free is not None and self._disk_free < self._settings.min_free_bytes

    async def watch_disk(self) -> None:
        """Look at the data folder's disk, for ever."""
        while True:
            await self.look_at_disk()
            await asyncio.sleep(_DISK_CHECK_SECONDS)

    async def look_at_disk(self) -> None:
        """Note how much room the data folder's disk has."""
        try:
            self._disk_free = (await asyncio.to_thread(shutil.disk_usage, self._settings.data_dir)).free
            self._disk_problem = ""
        except OSError as error:  # a network volume that went away, perhaps for a moment
            if not self._disk_problem:
                log.warning("the data folder's disk cannot be looked at", error=str(error))
            self._disk_problem = f"{self._settings.data_dir}: {error.strerror or error}"

    async def watch_queue(self, queue: JobQueue) -> None:
        """Ask the queue server whether it is there, for ever: polls wait long and stand still while every lane is busy.

        Not over REST, where every question is billed: there the next poll or renewal tells.
        """
        while queue.backend != "upstash":
            try:
                async with asyncio.timeout(_PING_PATIENCE):
                    await queue.ping()
                self._ping_problem = ""
            except (TimeoutError, WanHostError) as error:
                self._ping_problem = str(error) or f"the server does not answer within {_PING_PATIENCE:g} s"
            await asyncio.sleep(_PING_SECONDS)

    def problems(self, lanes: Sequence[LaneState], runs: Sequence[Run], *, stopping: bool) -> list[str]:
        """Return why no jobs can be taken; empty when they can."""
        reasons = list(self._registry.missing(self._settings.required_plugins).values())
        if stopping:
            reasons.append("the worker is stopping")
        if self._queue_problem or self._ping_problem:
            reasons.append(f"queue: {self._queue_problem or self._ping_problem}")
        if not self.lanes_started:
            reasons.append("lanes: starting")
        reasons += [
            f"lane {lane.name}: {lane.status}{': ' + lane.failure if lane.failure else ''}"
            for lane in lanes
            if lane.status in {"failed", "restarting", "stopped"}
        ]
        steps = {run.job_id: run.step_seconds() for run in runs}
        reasons += [problem for lane in lanes if (problem := _hung(lane, steps.get(lane.job_id)))]
        if self._disk_problem:
            reasons.append(f"disk: {self._disk_problem}")
        if self._disk_full and self._disk_free is not None:
            free, needed = self._disk_free // 2**20, self._settings.min_free_bytes // 2**20
            reasons.append(f"disk: {free} MiB free in {self._settings.data_dir}, {needed} MiB are needed")
        reasons += [self._spool_problem] if self._spool_problem else []
        if not any(model.kind == "generate" for model in self._registry.models.values()):
            reasons.append("no model is installed")
        return reasons


def _hung(lane: LaneState, step_seconds: float | None) -> str:
    """Say that a lane hangs, long before its limit lets it be killed; empty where nothing says so."""
    if lane.unanswered > _UNANSWERED_SECONDS:
        return f"lane {lane.name}: its process has not answered for {lane.unanswered:.0f} s"
    silent = lane.silent_for or 0.0
    if lane.stage == "denoise" and step_seconds is not None and silent > max(_SILENT_SECONDS, _SILENT_STEPS * step_seconds):
        return f"lane {lane.name}: no step of job {lane.job_id} for {silent:.0f} s, they take {step_seconds:.2g} s"
    return ""
