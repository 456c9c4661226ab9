"""One call to a lane as the host follows it: who wants it, how far it is, and when patience ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from wan_host.errors import DeadlineExceeded, JobCancelled
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import Done, Failed, FramesReady, FramesShared, Heartbeat
from wan_host.lanes.shared_clips import joined
from wan_host.lanes.state import EndReason
from wan_host.request import Generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


class PendingCall:
    """A caller's wish, from the moment it is uttered until the lane is free of it.

    It may take two exchanges with the lane: a load, then the work itself. Times are of ``time.monotonic``.
    """

    def __init__(self, *, job_id: str, model: str, deadline: float | None) -> None:
        """Made on the loop; ``deadline`` None means none."""
        self.job_id = job_id
        self.model = model
        self.deadline = deadline
        self.running = False
        self.cancelled: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Say that nobody wants it any more; the first time counts."""
        if not self.cancelled.done():
            self.cancelled.set_result(time.monotonic())

    def remaining(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise JobCancelled or DeadlineExceeded if it is no longer wanted."""
        if self.cancelled.done():
            raise JobCancelled(f"{self.subject()} was cancelled")
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded(f"{self.subject()} ran out of time")

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``, which is cancelled when the call is no longer wanted; then raises as ``check`` does."""
        task = asyncio.ensure_future(work)
        try:
            remaining = self.remaining()
            timeout = None if remaining is None else max(0.0, remaining)
            waited: set[asyncio.Future[Any]] = {task, self.cancelled}
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        self.check()
        raise DeadlineExceeded(f"{self.subject()} ran out of time")

    def subject(self) -> str:
        """Name it for a message."""
        return f"job {self.job_id}" if self.job_id else f"the work with model {self.model}"


class Exchange:
    """One message to the lane and what comes back, watched."""

    def __init__(self, number: int, pending: PendingCall, limits: LaneLimits, *, within: float | None = None) -> None:
        """Take the call's ``number`` on the wire, and ``within``, the seconds that a load may take."""
        self.number = number
        self.pending = pending
        self.begun = self.progressed = time.monotonic()
        self.what = ""
        self.stage = ""
        self.step = self.total = 0
        self.shared: dict[int, NDArray[np.uint8]] = {}
        """Frames by clip, in files that the lane writes."""
        self.moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stage has changed since it was last replaced: another limit holds now."""
        self.reply: asyncio.Future[Done | Failed] = asyncio.get_running_loop().create_future()
        self._limits = limits
        self.within = within
        self._ends = None if within is None else self.begun + within

    def remaining(self) -> float | None:
        """Seconds that the lane should be told: the nearer of the call's deadline and the exchange's own end."""
        ends = [end for end in (self._ends, self.pending.deadline) if end is not None]
        return min(ends) - time.monotonic() if ends else None

    def heard(self, beat: Heartbeat) -> None:
        """Take a sign of progress."""
        self.progressed = time.monotonic()
        if beat.stage != self.stage and not self.moved.done():
            self.moved.set_result(None)
        self.stage, self.step, self.total = beat.stage, beat.step, beat.total

    def shares(self, message: FramesShared | FramesReady) -> None:
        """Take the frames of a clip, or that more of them are there: progress, too."""
        self.progressed = time.monotonic()
        if isinstance(message, FramesShared):
            self.shared[message.clip] = message.frames

    def whole(self, done: Done) -> Done:
        """Return the reply with the frames that came before it."""
        if not isinstance(done.result, Generation):
            return done
        return replace(done, result=joined(done.result, done.shared, self.shared), shared=())

    def where(self) -> str:
        """How far it is, for a message."""
        steps = f", step {self.step} of {self.total}" if self.total else ""
        return f"in stage {self.stage}{steps}" if self.stage else "before it began"

    def patience(self) -> tuple[float, EndReason]:
        """Return when the lane is to be killed if nothing changes, and why."""
        limits, pending = self._limits, self.pending
        ends: list[tuple[float, EndReason]] = [(self.progressed + limits.silence(self.stage), "hung")]
        if pending.cancelled.done():
            ends.append((pending.cancelled.result() + limits.cancel_grace, "cancel"))
        if pending.deadline is not None:
            ends.append((pending.deadline + limits.cancel_grace, "deadline"))
        if self._ends is not None:
            # the lane itself ends a load that is late at its next sign of progress; one that does not give any is hung
            ends.append((self._ends + limits.cancel_grace, "hung"))
        return min(ends)
