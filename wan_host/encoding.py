"""Frames to files: H.264 in MP4 through ffmpeg, PNG through Pillow, and what was written measured on the file.

Equal frames give equal bytes: no dates, no version strings of the muxer, and a fixed number of encoder threads, because x264
decides differently with another one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wan_host.errors import EncodingFailed
from wan_host.media import Media
from wan_host.model import MediaKind
from wan_host.probe import Probe, Unreadable, probe

if TYPE_CHECKING:
    from wan_host.context import HookContext
    from wan_host.request import Clip

Ready = Callable[[int, "HookContext"], None]
"""Returns when the frame of that number is final; raises where the clip is given up, and what the context's ``check`` raises."""

__all__ = ["encode_asset", "ffmpeg_path", "probe"]

# Measured on 83 frames of 480x832, two cores: "faster" is as good as "medium" at this CRF (37.3 dB both, most of the loss being
# 4:2:0 itself), in 60 % of the time and with 18 % fewer bytes; "veryfast" needs 65 % more bytes for the same.
_CRF = "17"
_PRESET = "faster"
_THREADS = "4"
# A key frame in the middle lets that frame be read without the half before it: 40 ms instead of 160 at 2 MB and 83 frames of
# 480x832, for 7 to 10 % more bytes. Shorter clips have less before it, and would grow by 20 to 30 %.
_SPLIT_FROM = 48
_PNG_LEVEL = 3
_CHUNK = 1 << 20
_SLICE = 0.2  # seconds between looks at cancel and deadline while ffmpeg is busy
_LOG_KEPT = 2000
_RGB = 3

# A frame that must match its reference takes the first of these instead: 2 to 4 dB, up to where 4:2:0 itself is the limit, for
# some 70 kB at 480x832. Its neighbour takes the second: detail that only the one has would be a step (1.5 medians, not 1.1).
_FINE_QUANTIZERS = (10, 12)

# RGB has no matrix of its own: without these words swscale takes BT.601, and every player shows shifted colours. Chroma is
# the average of four pixels: as good as a filter on pictures, and 0.3 to 4 dB better, by decoder, at the edges of drawn ones.
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=area+accurate_rnd+full_chroma_int+bitexact,format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)


@functools.cache
def ffmpeg_path() -> str:
    """Return the ffmpeg to use: ``IMAGEIO_FFMPEG_EXE``, else one on PATH that has libx264, else imageio-ffmpeg's.

    The binary that the imageio-ffmpeg wheel carries is built with x264 and is under the GPL; this project starts it as a
    program of its own. Raises EncodingFailed where there is none.
    """
    chosen = os.environ.get("IMAGEIO_FFMPEG_EXE")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise EncodingFailed(f"IMAGEIO_FFMPEG_EXE: {chosen!r} is no program; name an ffmpeg with libx264 or unset it")
        return found
    found = shutil.which("ffmpeg")
    if found is not None and _has_x264(found):
        return found
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EncodingFailed(
            "no ffmpeg with libx264 was found; install one on PATH, set IMAGEIO_FFMPEG_EXE, or reinstall imageio-ffmpeg"
        ) from error


def _has_x264(program: str) -> bool:
    try:
        answer = subprocess.run(  # noqa: S603  # a program from PATH, fixed arguments
            [program, "-hide_banner", "-h", "encoder=libx264"], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"Encoder libx264" in answer.stdout


def encode_asset(
    clip: Clip,
    *,
    asset_index: int,
    kind: MediaKind,
    fps: int,
    workdir: Path,
    context: HookContext,
    finer: Sequence[int] = (),
    ready: Ready | None = None,
) -> Media:
    """Write ``{asset_index}.mp4`` or ``.png`` into ``workdir`` and return what was measured on it.

    ``clip.frames`` is read frame by frame, so it may be a mapped file, and with ``ready`` one that is still being written.
    ``fps`` acts on videos only; an image's rate and duration are 0. Frames with an index in ``finer`` (-1: the last) lose less,
    in videos. Raises EncodingFailed, and what ``context.check`` and ``ready`` raise; nothing is left behind then.
    """
    frames = clip.frames
    if frames.dtype != np.uint8 or frames.ndim != 1 + _RGB or frames.shape[-1] != _RGB or 0 in frames.shape:
        raise EncodingFailed(f"frames are {frames.dtype} of shape {frames.shape}; expected uint8 (frames, height, width, 3)")
    count, height, width, _ = frames.shape
    if kind == "image" and count != 1:
        raise EncodingFailed(f"an image job made {count} frames; expected 1")
    if kind == "video" and (width % 2 or height % 2):
        raise EncodingFailed(f"frames are {width}x{height}; H.264 in yuv420p needs even sides")
    context.check()
    suffix = ".png" if kind == "image" else ".mp4"
    path = workdir / f"{asset_index}{suffix}"
    partial = workdir / f"{asset_index}.part{suffix}"
    try:
        if kind == "image":
            if ready is not None:
                ready(0, context)
            Image.fromarray(frames[0]).save(partial, compress_level=_PNG_LEVEL)
        else:
            _encode_video(clip, fps, partial, context, finer, ready=ready)
        measured = _measured(partial, width=width, height=height, frames=count, fps=fps if kind == "video" else 0)
        partial.replace(path)
    except OSError as error:
        raise EncodingFailed(f"{path.name} could not be written: {error.strerror or type(error).__name__}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Media(
        asset_index=asset_index,
        kind=kind,
        path=path,
        width=measured.width,
        height=measured.height,
        frames=measured.frames,
        fps=measured.fps,
        duration=measured.duration,
        format=measured.format,
        file_size_bytes=measured.file_size_bytes,
        seed=clip.seed,
        clip=frames,
    )


def _measured(path: Path, *, width: int, height: int, frames: int, fps: float) -> Probe:
    try:
        found = probe(path)
    except Unreadable as error:
        raise EncodingFailed(str(error)) from error
    asked = (width, height, frames, float(fps))
    if (found.width, found.height, found.frames, found.fps) != asked:
        raise EncodingFailed(f"the file has {found}; asked were width, height, frames and fps {asked}")
    return found


def _encode_video(clip: Clip, fps: int, path: Path, context: HookContext, finer: Sequence[int], *, ready: Ready | None) -> None:
    count, height, width, _ = clip.frames.shape
    command = [ffmpeg_path(), "-hide_banner", "-nostats", "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps)]
    command += ["-i", "pipe:0", "-an", "-filter_threads", "1", "-vf", _TO_BT709]
    command += ["-c:v", "libx264", "-preset", _PRESET, "-crf", _CRF, "-threads", _THREADS, "-pix_fmt", "yuv420p"]
    if finer:
        command += ["-x264-params", "zones=" + _zones(count, finer)]
    if count >= _SPLIT_FROM:
        command += ["-force_key_frames", f"expr:eq(n,{count // 2})"]
    command += ["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]
    command += ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart"]
    command += ["-f", "mp4", str(path)]

    def check() -> None:
        context.check()
        if ready is not None:
            ready(0, context)  # final long since; a clip may be given up all the same

    # A session of its own: Ctrl-C in a terminal is the host's to handle, ffmpeg would end the file early.
    process = subprocess.Popen(  # noqa: S603  # a program that the operator chose, no shell
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, bufsize=0
    )
    try:
        said = _feed(process, _chunks(clip, context, ready), check)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    if code != 0:
        raise EncodingFailed(f"ffmpeg ended with {code}: {said.decode(errors='replace').strip() or 'it said nothing'}")


def _zones(count: int, finer: Sequence[int]) -> str:
    """Return x264's zones for frames that are coded finer, and for those beside them."""
    quantizers: dict[int, int] = {}
    for end in (index % count for index in finer):
        for distance, quantizer in enumerate(_FINE_QUANTIZERS):
            for index in {end - distance, end + distance} & set(range(count)):
                quantizers[index] = min(quantizer, quantizers.get(index, quantizer))
    return "/".join(f"{index},{index},q={quantizer}" for index, quantizer in sorted(quantizers.items()))


def _chunks(clip: Clip, context: HookContext, ready: Ready | None) -> Iterator[memoryview]:
    for number, frame in enumerate(clip.frames):
        if ready is not None:
            ready(number, context)
        whole = np.ascontiguousarray(frame).data.cast("B")
        for start in range(0, len(whole), _CHUNK):
            yield whole[start : start + _CHUNK]


def _feed(process: subprocess.Popen[bytes], chunks: Iterator[memoryview], check: Callable[[], None]) -> bytes:
    """Write ``chunks`` to the process while reading what it says; return the end of that once it has closed its output."""
    if process.stdin is None or process.stdout is None:
        raise TypeError("both pipes are needed")
    said, waiting = bytearray(), next(chunks)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            check()
            for key, _ in selector.select(_SLICE):
                if key.fileobj is process.stdout:
                    text = os.read(key.fd, _CHUNK)
                    if not text:
                        return bytes(said)
                    said = (said + text)[-_LOG_KEPT:]
                    continue
                try:
                    waiting = waiting[os.write(key.fd, waiting) :] or next(chunks)
                except (StopIteration, BrokenPipeError):  # all is written, or ffmpeg has ended: its output says why
                    selector.unregister(process.stdin)
                    process.stdin.close()
                except BlockingIOError:
                    continue
