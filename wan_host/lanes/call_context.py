"""The LaneContext of one call: heartbeats to the host, stage times, and the check for cancel and deadline."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wan_host import checkpoint
from wan_host.checkpoint import Checkpoint, CheckpointRejected
from wan_host.errors import DeadlineExceeded, JobCancelled
from wan_host.lanes.allocator import read_memory
from wan_host.lanes.messages import (
    Call,
    CheckpointEvent,
    CheckpointNews,
    Heartbeat,
    Memory,
    Preview,
    RunGenerate,
    Spent,
)
from wan_host.lanes.shared_clips import SharedClips

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STAGE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_QUIET_SECONDS = 0.05
_MEMORY_SECONDS = 0.5
_PREVIEW_SECONDS = 0.5
_PREVIEW_DIMENSIONS = 3


class CallContext:
    """Made by the control thread when a call arrives, so that a cancel finds it even before the call begins."""

    def __init__(self, call: Call, *, device: str, send: Callable[..., None], folder: str = "") -> None:
        """``send`` writes a message to the host, with a descriptor beside it or not, and may be called from any thread.

        ``folder`` is where memory files go on systems without memfd.
        """
        self.device = device
        self.call = call
        self._send = send
        self._cancelled = False
        self._deadline = None if call.remaining is None else time.monotonic() + call.remaining
        self._begun = self._entered = self._last_step = time.monotonic()
        self._stages: list[str] = []
        self._stage_seconds: dict[str, float] = {}
        self._step_seconds: list[float] = []
        self._step = self._total = 0
        self._memory = Memory()
        self._memory_read = self._beaten = self._previewed = float("-inf")
        self._busy = 0.0
        self.clips = SharedClips(call.call, call.request, send, folder) if isinstance(call, RunGenerate) else None
        self._plan = call.checkpoint if isinstance(call, RunGenerate) else None
        self._identity: dict[str, str] | None = None
        self.resumed_at = self._saved_at = 0
        """The step of the checkpoint that was gone on from."""

    def begin(self, stage: str) -> None:
        """Tell the host that the call has begun; ``stage`` holds wherever the hook names none."""
        self._begun = self._entered = self._last_step = time.monotonic()
        self._stages.append(stage)
        self._beat()

    def cancel(self) -> None:
        """Make the next check raise; safe from any thread."""
        self._cancelled = True

    def check(self) -> None:
        """Raise JobCancelled or DeadlineExceeded if the work is no longer wanted."""
        if self._cancelled:
            raise JobCancelled(f"{self._subject()} was cancelled")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DeadlineExceeded(f"{self._subject()} ran out of time{self._where()}")

    def step(self, step: int, total: int) -> None:
        """Send a heartbeat: ``step`` of ``total`` denoising steps are done. Checks first."""
        now = time.monotonic()
        self._step_seconds.append(now - self._last_step)
        self._last_step = now
        self._step, self._total = step, total
        self.check()
        # a hook that names no stages still has its steps watched and shown as such
        self._beat(stage="denoise" if len(self._stages) == 1 else "")

    def progress(self, note: str = "") -> None:
        """Send a heartbeat, at most twenty a second. Checks first."""
        self.check()
        if time.monotonic() - self._beaten >= _QUIET_SECONDS:
            self._beat(note=note)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as ``name``; the stage around it stands still meanwhile."""
        if not _STAGE.fullmatch(name):
            raise ValueError(f"stage: {name!r} is not allowed; expected a word of lower-case letters, digits and underscores")
        self.check()
        self._account()
        self._stages.append(name)
        self._last_step = time.monotonic()
        self._beat()
        try:
            yield
        finally:
            self._account()
            self._stages.pop()
        self._beat()

    def preview(self, image: NDArray[np.uint8]) -> None:
        """Send a small picture, at most two a second; others are dropped."""
        if image.dtype != np.uint8 or image.ndim != _PREVIEW_DIMENSIONS or image.shape[2] != 3:  # noqa: PLR2004  # RGB
            raise ValueError(f"preview: {image.dtype} of shape {image.shape}; expected uint8 of shape (height, width, 3)")
        now = time.monotonic()
        if now - self._previewed >= _PREVIEW_SECONDS:
            self._previewed = now
            self._send(Preview(call=self.call.call, image=np.ascontiguousarray(image)))

    def clip_frames(self, seed: int, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return room for the frames of the clip of ``seed``, which the host maps too."""
        return self._shared().room(seed, shape)

    def frames_ready(self, seed: int, count: int) -> None:
        """Tell the host that the first ``count`` frames of that clip are final. A heartbeat; checks as well."""
        self._shared().ready(seed, count)
        self.progress()

    def resume(self, made_with: Mapping[str, str]) -> Checkpoint | None:
        """Return the checkpoint of an earlier attempt; None where there is none, or one that is ignored."""
        if self._plan is None:
            return None
        self._identity = {**self._plan.identity, **{f"{name} (runner)": str(value) for name, value in made_with.items()}}
        try:
            found = checkpoint.read(Path(self._plan.path), self._identity)
        except CheckpointRejected as error:
            self._tell("ignored", checkpoint.step_of(Path(self._plan.path)), str(error))
            return None
        if found is not None:
            self.resumed_at = self._saved_at = found.step
            self._tell("resumed", found.step)
        return found

    def checkpoint(self, save: Callable[[], Checkpoint]) -> None:
        """Keep what ``save`` returns if a checkpoint is due; one that cannot be kept costs nothing but itself."""
        if self._plan is None or self._identity is None or self._step - self._saved_at < self._plan.every:
            return
        self._saved_at = self._step
        try:
            checkpoint.write(Path(self._plan.path), save(), self._identity)
        except (JobCancelled, DeadlineExceeded):
            raise
        except Exception as error:  # noqa: BLE001  # a full disk, a plugin's mistake: the job itself is not harmed
            self._tell("failed", self._step, f"{type(error).__name__}: {error}")
        else:
            self._tell("saved", self._step)
        self._last_step = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count what happens inside as busy time of the GPU, if the device is one."""
        begun = time.monotonic()
        try:
            yield
        finally:
            if self.device.startswith("cuda"):
                self._busy += time.monotonic() - begun

    def spent(self) -> Spent:
        """Where the seconds went, until now."""
        self._account()
        return Spent(
            seconds=time.monotonic() - self._begun,
            stages=dict(self._stage_seconds),
            steps=tuple(self._step_seconds),
            busy=self._busy,
        )

    def _shared(self) -> SharedClips:
        if self.clips is None:
            raise ValueError("clip_frames and frames_ready are for generate")
        return self.clips

    def _tell(self, what: CheckpointEvent, step: int, reason: str = "") -> None:
        self._send(CheckpointNews(call=self.call.call, what=what, step=step, reason=reason[:500]))

    def _account(self) -> None:
        now = time.monotonic()
        if self._stages:
            self._stage_seconds[self._stages[-1]] = self._stage_seconds.get(self._stages[-1], 0.0) + now - self._entered
        self._entered = now

    def _beat(self, *, stage: str = "", note: str = "") -> None:
        now = self._beaten = time.monotonic()
        if now - self._memory_read >= _MEMORY_SECONDS:
            self._memory_read, self._memory = now, read_memory(self.device)
        self._send(
            Heartbeat(
                call=self.call.call,
                stage=stage or self._stages[-1],
                step=self._step,
                total=self._total,
                note=str(note)[:200],
                memory=self._memory,
            )
        )

    def _subject(self) -> str:
        return f"job {self.call.job_id}" if self.call.job_id else f"the work with model {self.call.model}"

    def _where(self) -> str:
        steps = f", step {self._step} of {self._total}" if self._total else ""
        return f" (stage {self._stages[-1]}{steps})" if self._stages else ""
