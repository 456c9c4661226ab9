"""The files that are made beside an asset. Pictures are written from bare pixels, so none carries metadata."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from PIL import Image

from wan_host import DerivedFile
from wan_host_thumbnail.frames import EDGE, middle_frame, spread_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wan_host import HookContext, Media
    from wan_host_thumbnail.settings import ThumbnailSettings

QUALITY = 85
PREVIEW_BYTES = 500_000
_PREVIEW_RATE = 10
"""Frames a second of the preview: enough to see the motion."""
_PREVIEW_FRAMES = 60
_PREVIEW_QUALITIES = (75, 60, 45, 30, 15, 5)
_SHEET_FRAMES = 9
_GAP = 4


def derive(media: Media, context: HookContext, settings: ThumbnailSettings) -> Iterator[DerivedFile]:
    """Write the thumbnail and, of a video of several frames, what else is wanted."""
    yield _save(media, context, "thumbnail", "thumb", _webp(middle_frame(media, context)))
    if media.frames <= 1:
        return
    if settings.animated:
        context.check()
        yield _save(media, context, "preview", "preview", animate(media, context))
    if settings.sheet:
        context.check()
        yield _save(media, context, "sheet", "sheet", _webp(contact_sheet(media, context)))


def animate(media: Media, context: HookContext) -> bytes:
    """Return an animated WEBP that lasts as long as the video and takes at most 500 kB.

    Quality is lowered until it fits; noise may need fewer frames as well.
    """
    count = max(2, min(_PREVIEW_FRAMES, media.frames, math.ceil(media.duration * _PREVIEW_RATE)))
    frames = spread_frames(media, context, count)
    while True:
        milliseconds = round(1000 * media.duration / len(frames))
        for quality in _PREVIEW_QUALITIES:
            context.check()
            target = io.BytesIO()
            frames[0].save(
                target, "WEBP", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=quality, method=2
            )
            if target.tell() <= PREVIEW_BYTES:
                return target.getvalue()
        frames = frames[::2]


def contact_sheet(media: Media, context: HookContext) -> Image.Image:
    """Return up to nine frames in a grid, in reading order, on black."""
    frames = spread_frames(media, context, _SHEET_FRAMES)
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    width, height = frames[0].size
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP))
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        sheet.paste(frame, (column * (width + _GAP), row * (height + _GAP)))
    return sheet


def _webp(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "WEBP", quality=QUALITY)
    return target.getvalue()


def _save(media: Media, context: HookContext, role: str, suffix: str, content: bytes) -> DerivedFile:
    path = context.workdir / f"{media.asset_index}.{suffix}.webp"
    path.write_bytes(content)
    return DerivedFile(asset_index=media.asset_index, role=role, path=path, content_type="image/webp")


__all__ = ["EDGE", "PREVIEW_BYTES", "QUALITY", "animate", "contact_sheet", "derive"]
