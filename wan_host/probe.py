"""What is in a published file, read from the file itself: no process is started and no pixel decoded.

MP4 is read by its boxes (ISO/IEC 14496-12): the sample tables hold the number, sizes and durations of all frames, so a file
that was cut off or has another rate is noticed without a decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, UnidentifiedImageError

_MOOV_LIMIT = 64 << 20  # a video of minutes needs kilobytes
_LARGE = 1  # this size says that a 64-bit size follows
_HEADER = 8


class Unreadable(Exception):
    """The file is not what its name says, or not whole; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A file as it is: pixels, frames, frames per second and seconds (both 0 for an image), bytes."""

    format: Literal["mp4", "png"]
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    file_size_bytes: int
    faststart: bool = False


def probe(path: Path) -> Probe:
    """Measure an MP4 with one H.264 track of constant rate, or a PNG, by its suffix. Raises Unreadable and OSError."""
    try:
        return _probe_png(path) if path.suffix == ".png" else _probe_mp4(path)
    except (struct.error, KeyError, IndexError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise Unreadable(f"{path.name} is damaged: {type(error).__name__}: {error}") from error


def _probe_png(path: Path) -> Probe:
    with Image.open(path, formats=("PNG",)) as image:
        size = image.size
        image.verify()  # the checksums of all chunks
    return Probe(
        format="png", width=size[0], height=size[1], frames=1, fps=0.0, duration=0.0, file_size_bytes=path.stat().st_size
    )


def _probe_mp4(path: Path) -> Probe:
    with path.open("rb") as file:
        total = file.seek(0, 2)
        places = {kind: (start, size) for kind, start, size in _top_level(file, total)}
        for kind in (b"ftyp", b"moov", b"mdat"):
            if kind not in places:
                raise Unreadable(f"{path.name} has no {kind.decode()} box")
        start, size = places[b"moov"]
        if size > _MOOV_LIMIT:
            raise Unreadable(f"{path.name} has an index of {size} bytes")
        file.seek(start)
        moov = memoryview(file.read(size))
    media = _video_media(moov)
    table = dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))
    (timescale,) = struct.unpack_from(">I", media[b"mdhd"], 20 if media[b"mdhd"][0] == 1 else 12)
    durations = [struct.unpack_from(">II", table[b"stts"], 8 + 8 * row) for row in range(_count(table[b"stts"]))]
    frames, ticks = sum(count for count, _ in durations), sum(count * delta for count, delta in durations)
    if frames == 0 or ticks == 0 or timescale == 0:
        raise Unreadable(f"{path.name} has no frames")
    if len({delta for _, delta in durations}) > 1:
        raise Unreadable(f"{path.name} has frames of different durations")
    listed, payload = _samples(table[b"stsz"])
    if listed != frames or payload > places[b"mdat"][1]:
        raise Unreadable(
            f"{path.name} lists {listed} frames of {payload} bytes, times {frames} and holds {places[b'mdat'][1]} bytes"
        )
    entry = dict(_boxes(table[b"stsd"][_HEADER:]))
    width, height = struct.unpack_from(">HH", entry[b"avc1"], 24)
    return Probe(
        format="mp4",
        width=width,
        height=height,
        frames=frames,
        fps=float(Fraction(timescale * frames, ticks)),
        duration=ticks / timescale,
        file_size_bytes=total,
        faststart=places[b"moov"][0] < places[b"mdat"][0],
    )


def _top_level(file: BinaryIO, total: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and size of each box's content."""
    position = 0
    while position < total:
        file.seek(position)
        head = file.read(_HEADER + 8)
        size, kind = struct.unpack_from(">I4s", head)
        header = _HEADER
        if size == _LARGE:
            (size,) = struct.unpack_from(">Q", head, _HEADER)
            header += 8
        elif size == 0:  # to the end of the file
            size = total - position
        if size < header or position + size > total:
            raise Unreadable(f"box {kind!r} at {position} says {size} bytes; the file ends at {total}")
        yield kind, position + header, size - header
        position += size


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and content of the boxes inside a box."""
    position = 0
    while position + _HEADER <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        if size < _HEADER or position + size > len(content):
            raise Unreadable(f"box {kind!r} says {size} bytes; {len(content) - position} are left")
        yield kind, content[position + _HEADER : position + size]
        position += size


def _video_media(moov: memoryview) -> dict[bytes, memoryview]:
    """Return the boxes in ``mdia`` of the only video track."""
    tracks = [dict(_boxes(dict(_boxes(track))[b"mdia"])) for kind, track in _boxes(moov) if kind == b"trak"]
    videos = [media for media in tracks if bytes(media[b"hdlr"][8:12]) == b"vide"]
    if len(videos) != 1:
        raise Unreadable(f"{len(videos)} video tracks; one was expected")
    return videos[0]


def _count(table: memoryview) -> int:
    return int(struct.unpack_from(">I", table, 4)[0])


def _samples(stsz: memoryview) -> tuple[int, int]:
    """Return the number of samples and the sum of their sizes."""
    size, count = struct.unpack_from(">II", stsz, 4)
    return (count, size * count) if size else (count, sum(struct.unpack_from(f">{count}I", stsz, 12)))
