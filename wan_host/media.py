"""Files on their way out: what was encoded, what was derived from it, and where it was published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wan_host.model import MediaKind

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Media:
    """One encoded asset. Every number was measured on the file at ``path``: sizes in pixels, ``duration`` in seconds.

    ``clip`` holds the frames as they went into the encoder, uint8 RGB of shape (frames, height, width, 3), or None where
    the host no longer has them (a job taken up from the spool).
    """

    asset_index: int
    kind: MediaKind
    path: Path
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    format: Literal["mp4", "png"]
    file_size_bytes: int
    seed: int
    clip: NDArray[np.uint8] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedFile:
    """A file that a postprocess plugin made beside an asset. ``role`` is ``thumbnail`` or a name of the plugin's own."""

    asset_index: int
    role: str
    path: Path
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file to publish under ``key`` (``{user_id}/{job_id}/{name}``); publishing the same key again replaces it."""

    job_id: str
    user_id: str
    asset_index: int
    role: str
    path: Path
    key: str
    content_type: str
    file_size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """Where a file can be found now: ``url`` as reports carry it, bucket first; ``file_size_bytes`` as the store has it."""

    url: str
    file_size_bytes: int
