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
    """The file gave too few frames; the message ends with ffmpeg's last line."""


def small_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height with the longest edge at 256 and the aspect kept."""
    scale = EDGE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def middle_frame(media: Media, context: HookContext) -> Image.Image:
    """Return the middle frame (of an even number, the later one) with its longest edge at 256 pixels.

    Where the file must be read, that is one frame decoded if it is a key frame, as in long videos of the host, and else those
    from the last key frame on.
    """
    size = small_size(media.width, media.height)
    if media.clip is not None:
        return _shrink(media.clip[len(media.clip) // 2], size)
    if media.kind == "image":
        with Image.open(media.path) as opened:
            return _shrink(np.asarray(opened.convert("RGB")), size)
    # Half a frame either way, whatever the file's clock rounds to: the demuxer then starts at the frame itself where it is a key
    # frame, which ffmpeg's exact seek would not.
    before, after = ((media.frames // 2 + half) / media.fps for half in (-0.5, 0.5))
    chosen = f"between(t\\,{before:.6f}\\,{after:.6f})"
    seek = ["-nofind_stream_info", "-noaccurate_seek", "-copyts", "-ss", f"{after:.6f}"]
    try:  # ffmpeg decodes ahead of what is asked for; of key frames there are no others
        return _read(media, context, size, 1, chosen=chosen, seek=["-skip_frame", "nokey", *seek])[0]
    except FramesUnreadable:
        return _read(media, context, size, 1, chosen=chosen, seek=seek)[0]


def spread_frames(media: Media, context: HookContext, count: int) -> list[Image.Image]:
    """Return at most ``count`` frames at even distances, with their longest edge at 256 pixels.

    They cover the whole video, so without the frames at hand the whole file is decoded once.
    """
    size = small_size(media.width, media.height)
    chosen = spread(media.frames, count)
    if media.clip is not None:
        return [_shrink(media.clip[index], size) for index in chosen]
    return _read(media, context, size, len(chosen), chosen="+".join(f"eq(n\\,{index})" for index in chosen))


def spread(frames: int, count: int) -> Sequence[int]:
    """Return at most ``count`` numbers of frames, each in the middle of its share of the video."""
    count = min(count, frames)
    return [int((share + 0.5) * frames / count) for share in range(count)]


def _shrink(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _read(
    media: Media, context: HookContext, size: tuple[int, int], count: int, *, chosen: str, seek: Sequence[str] = ()
) -> list[Image.Image]:
    """Have ffmpeg hand over the first ``count`` frames for which the expression ``chosen`` is true, scaled.

    Raise FramesUnreadable where there are fewer.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    width, height = size
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", *seek, "-i", str(media.path), "-an"]
    command += [
        "-vf",
        f"select={chosen},scale={width}:{height}:flags=lanczos+accurate_rnd+full_chroma_int",
        "-fps_mode",
        "passthrough",
    ]
    command += ["-frames:v", str(count), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    context.check()
    try:
        done = subprocess.run(command, capture_output=True, timeout=max(0.1, context.remaining()), check=False)  # noqa: S603  # no shell; the path is the host's own
    except subprocess.TimeoutExpired as error:
        context.check()
        raise FramesUnreadable(f"{media.path.name}: ffmpeg took longer than the stage may") from error
    came = len(done.stdout) // (height * width * _CHANNELS)
    if done.returncode != 0 or came != count:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        why = words[-1] if words else "the file is too short"
        raise FramesUnreadable(f"{media.path.name}: ffmpeg gave {came} of {count} frames: {why}")
    return [Image.fromarray(frame) for frame in np.frombuffer(done.stdout, np.uint8).reshape(count, height, width, _CHANNELS)]
