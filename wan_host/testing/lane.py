"""A lane in this process: what a child process does with a call, and how it checks what comes back, without the process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from wan_host.hooks import Hooks
from wan_host.lanes import results
from wan_host.lanes.call_context import CallContext
from wan_host.lanes.faults import revive
from wan_host.lanes.messages import Call, Done, Failed, FramesReady, FramesShared, LoadModel, RunEnhance, RunGenerate, UnloadModel
from wan_host.lanes.shared_clips import joined
from wan_host.lanes.work import Work
from wan_host.model import ModelInfo
from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SECONDS = 600.0


class FakeLane:
    """One device's models and the calls to them; use ``with``, so that everything is unloaded in the end.

    ``beats`` are the signs of life of the last call: ``(step, total)`` of every step, notes of other progress. A call that is
    given ``cancel_at`` is cancelled when it has given so many. ``early`` are copies, by clip, of frames that the last generation
    said were final before it ended. Methods raise what the host would: errors of ``wan_host``.
    """

    def __init__(self, hooks: Hooks, *, models: Mapping[str, ModelInfo] | None = None, device: str = "cpu") -> None:
        """``models``: served beside those that the plugins offer."""
        self.beats: list[tuple[int, int] | str] = []
        self.early: dict[int, list[NDArray[np.uint8]]] = {}
        self.loaded: tuple[str, ...] = ()
        self._hooks, self._device = _Serving(hooks, models or {}), device
        self._work = Work(self._hooks, device)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        """Hold nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close and drop every model."""
        self._work.unload_all()

    @property
    def steps(self) -> list[tuple[int, int]]:
        """The denoising steps of the last call."""
        return [beat for beat in self.beats if isinstance(beat, tuple)]

    def load(self, model: str, *, cancel_at: int | None = None) -> None:
        """Load a model by its runner."""
        self._call(LoadModel(call=next(self._numbers), job_id="", model=model, remaining=_SECONDS), cancel_at)

    def unload(self, model: str) -> None:
        """Close and drop a model."""
        self._call(UnloadModel(call=next(self._numbers), job_id="", model=model), None)

    def generate(self, model: str, request: GenerationRequest, *, cancel_at: int | None = None) -> Generation:
        """Generate with a model that is loaded, frame processors included."""
        number = next(self._numbers)
        call = RunGenerate(call=number, job_id=request.job_id, model=model, remaining=_SECONDS, request=request)
        result = self._call(call, cancel_at)
        assert isinstance(result, Generation)  # noqa: S101  # the lane has checked it
        return result

    def enhance(self, plugin: str, model: str, request: EnhanceRequest, *, cancel_at: int | None = None) -> Enhancement:
        """Enhance a prompt with a model that is loaded."""
        number = next(self._numbers)
        call = RunEnhance(call=number, job_id="job", model=model, remaining=_SECONDS, plugin=plugin, request=request)
        result = self._call(call, cancel_at)
        assert isinstance(result, Enhancement)  # noqa: S101  # as above
        return result

    def process_frames(self, plugin: str, clip: Clip, request: GenerationRequest, *, cancel_at: int | None = None) -> Clip:
        """Pass a clip through one frame processor, as after ``generate``."""
        call = RunGenerate(call=next(self._numbers), job_id=request.job_id, model="", remaining=_SECONDS, request=request)
        context = self._context(call, cancel_at)
        context.begin("process_frames")
        return results.checked_clip(self._hooks.process_frames(plugin, clip, request, context), request, plugin)

    def _context(self, call: Call, cancel_at: int | None) -> _Watched:
        self.beats = []
        return _Watched(call, device=self._device, beats=self.beats, cancel_at=cancel_at)

    def _call(self, call: Call, cancel_at: int | None) -> Generation | Enhancement | None:
        replies: list[Done | Failed] = []
        context = self._context(call, cancel_at)
        self._work.run(context, replies.append)
        self.early = context.early
        (reply,) = replies
        self.loaded = reply.loaded
        if isinstance(reply, Failed):
            error = revive(reply.error, reply.message)
            error.add_note(reply.traceback)
            raise error
        if isinstance(reply.result, Generation):
            return joined(reply.result, reply.shared, context.shared)
        return reply.result


class _Serving(Hooks):
    """The plugins' hooks, and some more models."""

    def __init__(self, hooks: Hooks, more: Mapping[str, ModelInfo]) -> None:
        super().__init__(hooks.registry)
        self._more = more

    def models(self) -> Mapping[str, ModelInfo]:
        return {**super().models(), **self._more}


class _Watched(CallContext):
    """A call's context that counts signs of life."""

    def __init__(self, call: Call, *, device: str, beats: list[tuple[int, int] | str], cancel_at: int | None) -> None:
        super().__init__(call, device=device, send=self._hear)
        self._beats, self._cancel_at = beats, cancel_at
        self.shared: dict[int, NDArray[np.uint8]] = {}
        self.early: dict[int, list[NDArray[np.uint8]]] = {}

    def step(self, step: int, total: int) -> None:
        super().step(step, total)
        self._count((step, total))

    def progress(self, note: str = "") -> None:
        super().progress(note)
        self._count(note)

    def _hear(self, message: object, descriptor: int | None = None) -> None:  # noqa: ARG002  # memory is shared here
        if isinstance(message, FramesShared):
            self.shared[message.clip] = message.frames
        elif isinstance(message, FramesReady):
            self.early.setdefault(message.clip, []).append(self.shared[message.clip][: message.count].copy())

    def _count(self, beat: tuple[int, int] | str) -> None:
        self._beats.append(beat)
        if len(self._beats) == self._cancel_at:
            self.cancel()
