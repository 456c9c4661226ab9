"""Frames between two others, by optical flow.

Dense inverse search (Kroeger et al., ECCV 2016) says where every pixel goes, in both directions. From that follows where a
pixel of a frame between comes from in either (Jiang et al., "Super SloMo", CVPR 2018, equation 4), and the two pictures so
made are mixed. The less they agree better with each other than the two frames do as they stand, the more the frames
themselves are mixed in: there the flow is wrong (a still ground beside a moving object, repeated patterns) or follows noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wan_host_enhance_video.threads import side_by_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wan_host import LaneContext

    Frames = NDArray[np.uint8]
    Field = NDArray[np.float32]

_COMPARED = (9, 9)
"""Pixels around one over which pictures are compared."""
_TRUSTED, _REJECTED = 0.2, 0.8
"""Shares of the difference that moving leaves over: at the first flow is believed wholly, at the second not at all."""


def retime(frames: Frames, count: int, context: LaneContext) -> Frames:
    """Return ``count`` frames at even distances from the first to the last, uint8 RGB (count, height, width, 3).

    A frame that falls on one of ``frames``, as the first and the last do, is that one, bit for bit.
    """
    made = np.empty((count, *frames.shape[1:]), np.uint8)
    between: dict[int, list[tuple[int, float]]] = {}
    for index in range(count):
        before, rest = divmod(index * (len(frames) - 1), max(1, count - 1))
        if rest:
            between.setdefault(before, []).append((index, rest / (count - 1)))
        else:
            made[index] = frames[before]

    def fill(before: int) -> None:
        indices, times = zip(*between[before], strict=True)
        made[list(indices)] = in_between(frames[before], frames[before + 1], times)

    side_by_side([partial(fill, before) for before in between], context)
    return made


def in_between(first: Frames, second: Frames, times: Sequence[float]) -> list[Frames]:
    """Return the frames at ``times``, each above 0 (``first``) and below 1 (``second``); all are (height, width, 3)."""
    forth, back = _flows(first, second)
    unmoved = _difference(first, second)
    made = []
    for t in times:
        to_first = t * t * back - (1 - t) * t * forth
        to_second = (1 - t) ** 2 * forth - t * (1 - t) * back
        from_first, from_second = _moved(first, to_first), _moved(second, to_second)
        left = (_difference(from_first, from_second) + 1) / (unmoved + 1)
        trust = np.clip((_REJECTED - left) / (_REJECTED - _TRUSTED), 0, 1)[..., None]
        blend = trust * _mixed(from_first, from_second, t) + (1 - trust) * _mixed(first, second, t)
        made.append(blend.round().astype(np.uint8))
    return made


def _flows(first: Frames, second: Frames) -> tuple[Field, Field]:
    """Return how far each pixel of either moves to the other, (height, width, xy) in pixels."""
    gray_first, gray_second = _in_gray(first, second)
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forth, back = search.calc(gray_first, gray_second, None), search.calc(gray_second, gray_first, None)
    return np.asarray(forth, np.float32), np.asarray(back, np.float32)


def _in_gray(first: Frames, second: Frames) -> tuple[Frames, Frames]:
    """Return both in one channel, along the line of colours on which they differ most: all of them may be equally bright."""
    difference = (first.astype(np.float64) - second).reshape(-1, 3)
    _, lines = np.linalg.eigh(difference.T @ difference)  # sums of whole numbers: exact in any order
    line = lines[:, -1:].T.astype(np.float32)
    along = [cv2.transform(frame.astype(np.float32), line) for frame in (first, second)]
    low, high = min(part.min() for part in along), max(part.max() for part in along)
    gray_first, gray_second = (((part - low) * (255 / max(high - low, 1))).astype(np.uint8) for part in along)
    return gray_first, gray_second


def _moved(frame: Frames, field: Field) -> Frames:
    """Return the picture whose pixel at p is that of ``frame`` at p + field(p)."""
    y, x = np.indices(field.shape[:2], np.float32)
    return np.asarray(
        cv2.remap(frame, x + field[..., 0], y + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _difference(one: Frames, other: Frames) -> Field:
    return np.asarray(cv2.boxFilter(cv2.absdiff(one, other), cv2.CV_32F, _COMPARED).sum(axis=2), np.float32)


def _mixed(first: Frames, second: Frames, t: float) -> Frames:
    return np.asarray(cv2.addWeighted(first, 1 - t, second, t, 0), np.uint8)
