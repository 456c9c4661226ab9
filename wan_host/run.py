"""A run: one attempt of a job, with everything that is known of it while it goes through the stages."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_host.context import StageContext
from wan_host.job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DENOISE = frozenset({"denoise", "generate"})
_SOON = 0.001
"""Seconds left of a job that should be past its steps by now, and is not."""
_AFTER_LANE = frozenset({"encode", "postprocess", "spool", "publish", "report"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a job will probably take, in seconds: until its first denoising step, for all of these, and afterwards."""

    before: float
    denoise: float
    after: float


@dataclass(slots=True, eq=False)
class Run:
    """One attempt. ``attempt`` numbers it over the job's whole life, ``counted`` since the job was last pushed.

    ``token`` is the fencing token of its lease (0 without a queue); times are of ``time.monotonic``.
    """

    job_id: str
    user_id: str
    token: int
    attempt: int
    deadline: float
    workdir: Path
    counted: int = 0
    queue_time: float = 0.0
    job: Job | None = None
    expected: Expected | None = None
    started: float = field(default_factory=time.monotonic)
    stage: str = "waiting"
    visits: list[tuple[str, float]] = field(default_factory=list)
    """Every stage in the order of its visits, with the Unix time when it was entered."""
    step: int = 0
    total: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    cancelled: bool = False
    on_change: Callable[[Run], None] | None = None
    ending: bool = False
    """The queue is being told how the run ended; whether its lease was still held, the answer to that says."""
    resumed_at: int = 0
    """The step of the checkpoint that this attempt went on from."""
    on_checkpoint: Callable[[str, int, str], None] | None = None
    on_frames: Callable[[int, NDArray[np.uint8], int], None] | None = None
    """Called with a clip's number, its frames and how many of them are final, while the lane makes the rest."""
    background: list[asyncio.Task[None]] = field(default_factory=list)
    leased: float = -math.inf
    """Not later than when the queue last gave or renewed the lease: for the lease's length from then nobody else has the job."""
    last_progress: float = field(default_factory=time.monotonic)
    preview: NDArray[np.uint8] | None = None
    """The latest picture of the unfinished result, uint8 RGB of shape (height, width, 3); ``previews`` counts them."""
    previews: int = 0
    _first_step: tuple[float, int] | None = None
    _last_step: float = 0.0
    _denoising: float | None = None
    _contexts: list[StageContext] = field(default_factory=list)

    def context(self, timeout: float, *, past_deadline: bool = False) -> StageContext:
        """Return a context for one piece of blocking work: ``timeout`` seconds, within the job's deadline.

        ``past_deadline``: the job's deadline does not count, because its work is done and only has to be delivered.
        """
        deadline = time.monotonic() + timeout
        if not past_deadline:
            deadline = min(deadline, self.deadline)
        context = StageContext(job_id=self.job_id, user_id=self.user_id, workdir=self.workdir, deadline=deadline)
        if self.cancelled:
            context.cancel()
        self._contexts.append(context)
        return context

    def cancel(self) -> None:
        """Stop the work at its next check."""
        self.cancelled = True
        for context in self._contexts:
            context.cancel()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Enter a stage and add its seconds to what earlier visits took."""
        self.enter(stage)
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started
            self.progressed()

    def enter(self, stage: str) -> None:
        """Say which stage the run is in."""
        self._visit(stage)
        self.progressed()

    def _visit(self, stage: str) -> None:
        if stage != self.stage or not self.visits:
            self.visits.append((stage, time.time()))
        self.stage = stage

    def stepped(self, stage: str, step: int, total: int) -> None:
        """Say how far the lane is."""
        if step == 1 or self._first_step is None:
            self._first_step = (time.monotonic(), step)
        if step != self.step:
            self._last_step = time.monotonic()
        if self._denoising is None and stage in _DENOISE:
            self._denoising = time.monotonic()
        self._visit(stage)
        self.step, self.total = step, total
        self.progressed()

    def checkpointed(self, what: str, step: int, reason: str) -> None:
        """Say what became of the checkpoint at ``step``: saved, resumed, ignored or failed."""
        if what == "resumed":
            self.resumed_at = step
        if self.on_checkpoint is not None:
            self.on_checkpoint(what, step, reason)

    def previewed(self, image: NDArray[np.uint8]) -> None:
        """Keep a picture of the unfinished result, for those who watch."""
        self.preview = image
        self.previews += 1

    def progressed(self) -> None:
        """Note that something moved: a lease is only renewed while that happens."""
        self.last_progress = time.monotonic()
        if self.on_change is not None:
            self.on_change(self)

    def seconds_left(self) -> float | None:
        """Estimate how long the lane still needs, from the pace of its steps; None before it is known, 0 when it is done."""
        if self.stage in _AFTER_LANE or 0 < self.total <= self.step:
            return 0.0
        if self._first_step is None or self.step <= self._first_step[1]:
            return None
        since, first = self._first_step
        pace = (self._last_step - since) / (self.step - first)
        return max(0.0, pace * (self.total - self.step) - (time.monotonic() - self._last_step))

    def lane_seconds_left(self) -> float | None:
        """Estimate as ``seconds_left``, 0 only once the steps are done; while they have only begun, by what such jobs took."""
        left = self.seconds_left()
        if left == 0.0 and self.stage not in _AFTER_LANE and self.step < self.total:
            return _SOON
        if left is not None or self.expected is None or self._denoising is None:
            return left
        return max(_SOON, self.expected.denoise - (time.monotonic() - self._denoising))

    def step_seconds(self) -> float | None:
        """Seconds of a denoising step: as measured, else as expected; None where neither is known."""
        if self._first_step is not None and self.step > self._first_step[1]:
            return (self._last_step - self._first_step[0]) / (self.step - self._first_step[1])
        if self.expected is None or self.job is None:
            return None
        return self.expected.denoise / (self.total or self.job.request.num_inference_steps * self.job.request.num_images)

    def time_left(self) -> float | None:
        """Estimate how long the job still needs until it is published; None where nothing is known of such jobs yet."""
        lane, expected, now = self.seconds_left(), self.expected, time.monotonic()
        if expected is None:
            return lane if lane != 0.0 else None
        if lane is not None:
            over = now - self._last_step if lane == 0.0 else 0.0
            return lane + max(0.0, expected.after - over)
        if self._denoising is not None:
            undone = (self.total - self.step) / self.total if self.total else 1.0
            return max(0.0, expected.denoise * undone - (now - self._denoising)) + expected.after
        return max(expected.before + expected.denoise - self.elapsed(), expected.denoise) + expected.after

    def elapsed(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.started

    def progress(self) -> dict[str, Any]:
        """Return what others are told: stage, step, total, and the estimate of the seconds left."""
        left = self.time_left()
        told: dict[str, Any] = {"stage": self.stage, "step": self.step, "total": self.total}
        return told if left is None else {**told, "seconds_left": round(left, 1)}
