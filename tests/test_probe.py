"""Measuring files by their own boxes, against what ffmpeg decodes, and on damaged ones."""

import struct

import numpy as np
import pytest
from PIL import Image

from wan_host.probe import Unreadable, probe


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def mp4(*, frames=3, delta=512, listed=None, payload=30, timescale=12288, before=b""):
    """Return the least MP4 that says what a probe reads."""
    stts = box(b"stts", struct.pack(">IIII", 0, 1, frames, delta))
    stsz = box(b"stsz", struct.pack(">III", 0, payload // frames, frames if listed is None else listed))
    entry = box(b"avc1", bytes(24) + struct.pack(">HH", 128, 96) + bytes(50))
    stbl = box(b"stbl", box(b"stsd", struct.pack(">II", 0, 1) + entry) + stts + stsz)
    media = box(b"mdhd", bytes(12) + struct.pack(">II", timescale, 0)) + box(b"hdlr", bytes(8) + b"vide") + box(b"minf", stbl)
    return box(b"ftyp", b"isom") + before + box(b"moov", box(b"trak", box(b"mdia", media))) + box(b"mdat", bytes(payload))


def written(tmp_path, content):
    path = tmp_path / "0.mp4"
    path.write_bytes(content)
    return path


def test_a_video_is_measured_by_its_sample_tables(tmp_path):
    found = probe(written(tmp_path, mp4()))
    assert (found.width, found.height, found.frames, found.fps) == (128, 96, 3, 24.0)
    assert found.duration == pytest.approx(3 / 24)
    assert found.faststart


def test_boxes_of_64_bit_and_to_the_end_are_understood(tmp_path):
    large = struct.pack(">I4sQ", 1, b"free", 20) + bytes(4)
    content = mp4(before=large)
    assert probe(written(tmp_path, content)).frames == 3
    start = content.rindex(b"mdat") - 4
    assert probe(written(tmp_path, content[:start] + bytes(4) + content[start + 4 :])).frames == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video at all, and long enough",
        mp4()[:-1],
        mp4()[:60],
        mp4(listed=4),
        mp4(delta=0),
        mp4(timescale=0),
        mp4().replace(b"vide", b"soun"),
        mp4().replace(b"avc1", b"hvc1"),
        mp4().replace(b"stts", b"free"),
        mp4().replace(b"mdat", b"free"),
    ],
)
def test_damaged_and_foreign_files_are_unreadable(tmp_path, content):
    with pytest.raises(Unreadable):
        probe(written(tmp_path, content))


def test_an_image_is_measured_and_its_checksums_are_read(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(path)
    found = probe(path)
    assert (found.width, found.height, found.frames, found.fps, found.duration) == (48, 32, 1, 0.0, 0.0)
    assert found.file_size_bytes == path.stat().st_size
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable):
        probe(path)
    path.write_bytes(b"no picture")
    with pytest.raises(Unreadable):
        probe(path)
