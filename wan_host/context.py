"""What a hook is given beside its data: the way to stop in time, to say that it is alive, and to log."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from wan_host.errors import DeadlineExceeded, JobCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from wan_host.checkpoint import Checkpoint


class HookContext(Protocol):
    """Given to hooks that run in the host process, in a thread of its pool."""

    job_id: str
    user_id: str
    workdir: Path
    """A folder of the job's own; removed when the job has ended."""

    def check(self) -> None:
        """Raise JobCancelled or DeadlineExceeded if the work is no longer wanted; call it between pieces of work."""

    def remaining(self) -> float:
        """Seconds until the stage's deadline; bound every wait on others by it."""


class LaneContext(Protocol):
    """Given to hooks that run in a lane: one child process per device, one call at a time."""

    device: str
    """The device as torch names it: ``cuda:0``, ``mps`` or ``cpu``."""

    def check(self) -> None:
        """Raise JobCancelled or DeadlineExceeded if the work is no longer wanted; cheap, call it wherever work can end."""

    def step(self, step: int, total: int) -> None:
        """Say that ``step`` of ``total`` denoising steps are done. A heartbeat for the watchdog; checks as well."""

    def progress(self, note: str = "") -> None:
        """Say that work goes on outside the denoising loop (a file loaded, a VAE chunk decoded). A heartbeat; checks as well."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the work under one of the stage names of the metrics: load, text_encode, denoise, decode."""

    def preview(self, image: NDArray[np.uint8]) -> None:
        """Offer a small picture of the unfinished result, uint8 RGB of shape (height, width, 3)."""

    def clip_frames(self, seed: int, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return room for the frames of a seed's clip, uint8; ``shape`` is the request's (frames, height, width, 3).

        To use it is optional. The host has it mapped: frames need no copy on their way, and those that ``frames_ready`` has told
        of are encoded while the others are made. Return this very array in the Clip; where another is returned, that counts.
        """

    def frames_ready(self, seed: int, count: int) -> None:
        """Say that the first ``count`` frames of the array that ``clip_frames`` gave for ``seed`` are as they will stay.

        A heartbeat; checks as well.
        """

    def resume(self, made_with: Mapping[str, str]) -> Checkpoint | None:
        """Return where an earlier attempt of this job got to; None where there is nothing to go on from.

        Call it once in ``generate``. ``made_with`` names what the bits depend on beside request, model and device: versions of
        libraries, kernels. A checkpoint with anything else of it is not returned, and the log says why.
        """

    def checkpoint(self, save: Callable[[], Checkpoint]) -> None:
        """Offer to save the unfinished job; call it after every ``step`` that can be gone on from, after ``resume``.

        ``save`` is only called when a checkpoint is due, ``WAN_HOST_CHECKPOINT_EVERY`` steps after the last one. One that cannot
        be made or kept is logged, and the job goes on.
        """


class StageContext:
    """The HookContext that the host passes: a deadline on the monotonic clock and a cancel flag."""

    def __init__(self, *, job_id: str, user_id: str, workdir: Path, deadline: float) -> None:
        """``deadline`` is a time of ``time.monotonic``."""
        self.job_id, self.user_id, self.workdir = job_id, user_id, workdir
        self._deadline = deadline
        self._cancelled = False

    def cancel(self) -> None:
        """Make the next check raise; safe from any thread."""
        self._cancelled = True

    def check(self) -> None:
        """Raise JobCancelled or DeadlineExceeded if the work is no longer wanted."""
        if self._cancelled:
            raise JobCancelled(f"job {self.job_id} was cancelled")
        if self.remaining() <= 0:
            raise DeadlineExceeded(f"job {self.job_id} ran out of time")

    def remaining(self) -> float:
        """Seconds until the deadline, negative once it has passed."""
        return self._deadline - time.monotonic()
