"""Pictures of twice the size that still are the picture: projections onto two convex sets, from a bicubic beginning.

One set holds the pictures that, halved by averaging, give the small one again (back-projection, Irani and Peleg 1991); the
other those whose pixels stay within what is found around them in the small one, which keeps the first from ringing at edges.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wan_host_enhance_video.threads import side_by_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wan_host import LaneContext

    Frames = NDArray[np.uint8]

ROUNDS = 4
_AROUND = np.ones((3, 3), np.uint8)


def enlarge_all(frames: Frames, context: LaneContext) -> Frames:
    """Return every frame at twice its size, uint8 RGB (frames, 2 height, 2 width, 3)."""
    count, height, width, channels = frames.shape
    made = np.empty((count, 2 * height, 2 * width, channels), np.uint8)

    def fill(index: int) -> None:
        made[index] = enlarge(frames[index])

    side_by_side([partial(fill, index) for index in range(count)], context)
    return made


def enlarge(picture: Frames) -> Frames:
    """Return a picture of twice the size, uint8 (2 height, 2 width, 3)."""
    low = _doubled(cv2.erode(picture, _AROUND), cv2.INTER_NEAREST).astype(np.float32)
    high = _doubled(cv2.dilate(picture, _AROUND), cv2.INTER_NEAREST).astype(np.float32)
    small = picture.astype(np.float32)
    large = np.clip(_doubled(small, cv2.INTER_CUBIC), low, high)
    for _ in range(ROUNDS):
        missing = small - cv2.resize(large, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        large = np.clip(large + _doubled(missing, cv2.INTER_CUBIC), low, high)
    return np.asarray(large.round(), np.uint8)


def _doubled(picture: NDArray[np.generic], interpolation: int) -> NDArray[np.generic]:
    return np.asarray(cv2.resize(picture, None, fx=2, fy=2, interpolation=interpolation))
