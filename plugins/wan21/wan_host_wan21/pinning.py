"""Make the first and last frame of a clip equal to their references, without a jump beside them.

VACE re-synthesises the frames it was told to keep: its mask loses single frames when it is resized to the latent grid
(pipeline_wan_vace.py:625), as in the original code. So what differs from the reference is added to the frame, and fades out over
its neighbours, as slowly as it takes for the step beside the pinned frame to be like the clip's other steps.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_LIMIT = 1.35
"""Allowed difference beside a pinned frame, in medians of all differences: the promise is 1.5, less what encoding takes."""
_SHORTEST = 4
_GROWTH = 1.5
_SAMPLE = 64
"""The search looks at a grid of at most this many rows and columns."""
_EASES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
_EASED_FRAMES = 4
_THREADS = 8
"""The GPU rests meanwhile: one thread takes a second for 81 frames of 480x832."""
_LARGE = 1 << 16
"""Pixel values of a frame from which on threads pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What was done: over how many frames the correction fades, and the largest step beside a pinned frame in medians."""

    fade_frames: int
    step_ratio: float
    error_db: float
    """PSNR of the worst end before it was pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fade:
    """Weights of the corrections. ``ease`` also draws the neighbours towards the reference, where a fade is not enough."""

    length: int
    ease: float

    def weights(self, frames: int, end: int) -> NDArray[np.float32]:
        """Return the correction's weight in every frame: 1 at the end, then falling linearly to 0."""
        distance = np.abs(np.arange(frames) - end)
        return np.clip(1 - distance / self.length, 0, 1).astype(np.float32)

    def pull(self, frames: int, end: int) -> NDArray[np.float32]:
        """Return how far every frame is drawn to the reference."""
        distance = np.abs(np.arange(frames) - end)
        return (self.ease * np.clip(1 - (distance - 1) / _EASED_FRAMES, 0, 1)).astype(np.float32)


def pin(
    frames: NDArray[np.uint8], first: NDArray[np.uint8] | None, last: NDArray[np.uint8] | None, weight: float = 1.0
) -> tuple[NDArray[np.uint8], Pinned]:
    """Return a copy of ``frames`` (F, height, width, 3) whose ends are the references, and what was done.

    ``weight`` below 1 goes only that part of the way. One frame alone becomes the first reference, or the last.
    """
    wanted = {len(frames) - 1: last} if last is not None else {}
    if first is not None:
        wanted[0] = first
    error = min(_psnr(frames[end], reference) for end, reference in wanted.items())
    if len(frames) == 1:
        return _apply(frames, wanted, _Fade(length=1, ease=0), weight), Pinned(fade_frames=0, step_ratio=0, error_db=error)
    fade, ratio = _choose(frames, wanted, weight)
    return _apply(frames, wanted, fade, weight), Pinned(fade_frames=fade.length, step_ratio=round(ratio, 3), error_db=error)


def step_ratio(frames: NDArray[np.uint8], ends: list[int]) -> float:
    """Return the largest step beside one of ``ends`` in medians of all steps: mean absolute or RMS, whichever is worse."""
    steps = np.diff(frames.astype(np.float32), axis=0).reshape(len(frames) - 1, -1)
    ratios = []
    for sizes in (np.abs(steps).mean(axis=1), np.sqrt((steps**2).mean(axis=1))):
        beside = max(sizes[0 if end == 0 else -1] for end in ends)
        median = float(np.median(sizes))
        ratios.append(float(beside) / median if median > 0 else (0.0 if beside == 0 else float("inf")))
    return max(ratios)


def _choose(frames: NDArray[np.uint8], wanted: dict[int, NDArray[np.uint8]], weight: float) -> tuple[_Fade, float]:
    """Return the shortest fade that keeps the limit, eased only if none does; else the one that comes nearest."""
    height, width = frames.shape[1:3]
    grid = (slice(None, None, max(1, height // _SAMPLE)), slice(None, None, max(1, width // _SAMPLE)))
    small = frames[:, grid[0], grid[1]]
    targets = {end: reference[grid] for end, reference in wanted.items()}
    best = (_Fade(length=1, ease=0), float("inf"))
    for ease in _EASES:
        for length in _lengths(len(frames)):
            fade = _Fade(length=length, ease=ease)
            ratio = step_ratio(_apply(small, targets, fade, weight), list(wanted))
            if ratio <= STEP_LIMIT:
                return fade, ratio
            if ratio < best[1]:
                best = (fade, ratio)
    return best


def _lengths(frames: int) -> list[int]:
    """Return fades to try, shortest first, up to the whole clip."""
    lengths, length = [], float(_SHORTEST)
    while length < frames - 1:
        lengths.append(int(length))
        length *= _GROWTH
    return [*lengths, frames - 1]


def _apply(frames: NDArray[np.uint8], wanted: dict[int, NDArray[np.uint8]], fade: _Fade, weight: float) -> NDArray[np.uint8]:
    made = frames.copy()
    count = len(frames)
    residuals = {end: reference.astype(np.float32) - frames[end] for end, reference in wanted.items()}
    weights = {end: weight * fade.weights(count, end) for end in wanted}
    pulls = {end: weight * fade.pull(count, end) for end in wanted}

    def correct(index: int) -> None:
        if index in wanted and weight >= 1:
            made[index] = wanted[index]
            return
        frame = frames[index].astype(np.float32)
        for end, residual in residuals.items():
            if weights[end][index]:
                frame += weights[end][index] * residual
        for end, reference in wanted.items():
            if index != end and pulls[end][index]:
                frame += pulls[end][index] * (reference - frame)
        np.clip(np.rint(frame, out=frame), 0, 255, out=frame)
        made[index] = frame

    near = [index for index in range(count) if any(weights[end][index] or pulls[end][index] for end in wanted)]
    if frames[0].size < _LARGE:
        for index in near:
            correct(index)
    else:
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            list(threads.map(correct, near))
    return made


def _psnr(frame: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    error = float(np.mean((frame.astype(np.float32) - reference) ** 2))
    return round(min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9)))), 2)
