"""Clips that a lane writes where the host reads: the first frames are encoded while the last ones are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wan_host.lanes import memory_file
from wan_host.lanes.messages import FramesReady, FramesShared
from wan_host.request import Generation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wan_host.request import GenerationRequest

_CHANNELS = 3


@dataclass(slots=True, eq=False)
class _Room:
    frames: NDArray[np.uint8]
    ready: int = 0


def joined(generation: Generation, shared: Sequence[int], frames: Mapping[int, NDArray[np.uint8]]) -> Generation:
    """Return what ``SharedClips.split`` was given, on the other side: ``frames`` by the numbers of the clips."""
    clips = [replace(clip, frames=frames[number]) if number in shared else clip for number, clip in enumerate(generation.clips)]
    return Generation(clips=tuple(clips), metadata=generation.metadata)


class SharedClips:
    """The clips of one call that have their room in memory files."""

    def __init__(self, call: int, request: GenerationRequest, send: Callable[..., None], folder: str) -> None:
        """``send`` takes a message and the descriptor that goes with it."""
        self._call, self._request, self._send, self._folder = call, request, send, folder
        self._rooms: dict[int, _Room] = {}

    def room(self, seed: int, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return an array of the request's shape for a seed's clip, always the same one. Raises ValueError, OSError."""
        clip, wanted = self._clip(seed), self._request
        expected = (wanted.frames, wanted.height, wanted.width, _CHANNELS)
        if tuple(shape) != expected:
            raise ValueError(f"shape: {tuple(shape)} is not allowed; expected {expected}")
        if clip not in self._rooms:
            if wanted.postprocess:  # the host gets other frames, in the end
                self._rooms[clip] = _Room(np.zeros(shape, np.uint8))
            else:
                self._rooms[clip] = _Room(self._shared(clip, shape))
        return self._rooms[clip].frames

    def ready(self, seed: int, count: int) -> None:
        """Tell the host that the first ``count`` frames are final. Raises ValueError for what cannot be."""
        clip = self._clip(seed)
        room = self._rooms.get(clip)
        if room is None:
            raise ValueError(f"frames_ready: seed {seed} has no frames; ask for them by clip_frames first")
        if not room.ready <= count <= len(room.frames):
            raise ValueError(f"frames_ready: {count} is not allowed; expected {room.ready} to {len(room.frames)}")
        if count > room.ready and not self._request.postprocess:
            self._send(FramesReady(call=self._call, clip=clip, count=count))
        room.ready = count

    def split(self, result: Generation) -> tuple[Generation, tuple[int, ...]]:
        """Return the result without the frames that the host has, and the numbers of their clips."""
        rooms = {} if self._request.postprocess else self._rooms
        there = [number for number, clip in enumerate(result.clips) if number in rooms and clip.frames is rooms[number].frames]
        clips = [
            replace(clip, frames=np.empty((0,), np.uint8)) if number in there else clip
            for number, clip in enumerate(result.clips)
        ]
        return Generation(clips=tuple(clips), metadata=result.metadata), tuple(there)

    def _shared(self, clip: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        descriptor, mapped = memory_file.reserve(int(np.prod(shape)), self._folder)
        try:
            frames = np.frombuffer(mapped, np.uint8).reshape(shape)
            self._send(FramesShared(call=self._call, clip=clip, frames=frames), descriptor)
        finally:
            os.close(descriptor)
        return frames

    def _clip(self, seed: int) -> int:
        first, count = self._request.seed, self._request.num_images
        if not first <= seed < first + count:
            raise ValueError(f"seed: {seed} is not allowed; expected {first} to {first + count - 1}")
        return seed - first
