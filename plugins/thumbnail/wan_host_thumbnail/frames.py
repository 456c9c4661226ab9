"""Frames of an asset, small: from the host's memory where it still has them, else out of the file."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wan_host import WanHostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wan_host import HookContext, Media

EDGE = 256
"""Longest edge in pixels. Smaller sources are enlarged to it: receivers lay pages out by this size."""

_CHANNELS = 3


class FramesUnreadable(WanHostError):
    """The file gave no frame; the message ends with ffmpeg's last line."""


def small_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height with the longest edge at 256 and the aspect kept."""
    scale = EDGE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def middle_frame(media: Media, context: HookContext) -> Image.Image:
    """Return the middle frame (of an even number, the later one) with its longest edge at 256 pixels.

    Where the file must be read, ffmpeg seeks to the frame: it decodes from the key frame before it and never beyond it.
    """
    size = small_size(media.width, media.height)
    if media.clip is not None:
        return _shrink(media.clip[len(media.clip) // 2], size)
    if media.kind == "image":
        with Image.open(media.path) as opened:
            return _shrink(np.asarray(opened.convert("RGB")), size)
    # Half a frame early: the first frame at or after that time is the one meant, whatever the file's clock rounds to.
    start = max(0.0, (media.frames // 2 - 0.5) / media.fps)
    (frame,) = _read(media, context, size, seek=("-ss", f"{start:.6f}"), output=("-frames:v", "1"))
    return frame


def spread_frames(media: Media, context: HookContext, count: int) -> list[Image.Image]:
    """Return at most ``count`` frames at even distances, with their longest edge at 256 pixels.

    They cover the whole video, so without the frames at hand the whole file is decoded once.
    """
    size = small_size(media.width, media.height)
    chosen = spread(media.frames, count)
    if media.clip is not None:
        return [_shrink(media.clip[index], size) for index in chosen]
    picked = "+".join(f"eq(n\\,{index})" for index in chosen)
    return _read(media, context, size, output=("-fps_mode", "passthrough"), select=f"select={picked},")


def spread(frames: int, count: int) -> Sequence[int]:
    """Return at most ``count`` numbers of frames, each in the middle of its share of the video."""
    count = min(count, frames)
    return [int((share + 0.5) * frames / count) for share in range(count)]


def _shrink(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _read(
    media: Media,
    context: HookContext,
    size: tuple[int, int],
    *,
    seek: tuple[str, ...] = (),
    output: tuple[str, ...] = (),
    select: str = "",
) -> list[Image.Image]:
    """Have ffmpeg decode, scale and hand over raw pixels. Raise FramesUnreadable where none come."""
    from imageio_ffmpeg import get_ffmpeg_exe

    width, height = size
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", *seek, "-i", str(media.path), *output]
    command += ["-an", "-vf", f"{select}scale={width}:{height}:flags=lanczos", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    context.check()
    try:
        done = subprocess.run(command, capture_output=True, timeout=max(0.1, context.remaining()), check=False)  # noqa: S603  # no shell; the path is the host's own
    except subprocess.TimeoutExpired as error:
        context.check()
        raise FramesUnreadable(f"{media.path.name}: ffmpeg took longer than the stage may") from error
    length = width * height * _CHANNELS
    if done.returncode != 0 or not done.stdout or len(done.stdout) % length:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise FramesUnreadable(f"{media.path.name}: ffmpeg gave no frame: {words[-1] if words else 'the file is too short'}")
    pixels = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, _CHANNELS)
    return [Image.fromarray(frame) for frame in pixels]
