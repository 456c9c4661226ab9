"""Encoding: what was asked is what the file holds, equal frames give equal files, and nothing is left behind."""

import re
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from wan_host import encoding
from wan_host.context import StageContext
from wan_host.encoding import encode_asset, ffmpeg_path, probe
from wan_host.errors import DeadlineExceeded, EncodingFailed, JobCancelled
from wan_host.request import Clip
from wan_host.testing.media import psnr, read_frames


def context(tmp_path, seconds=60.0):
    return StageContext(job_id="j1", user_id="u1", workdir=tmp_path, deadline=time.monotonic() + seconds)


def moving(frames, height=96, width=64):
    """Return a smooth picture that moves: what an encoder is made for."""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width]
    red = 128 + 90 * np.sin((x + 3 * t) / 15)
    green = 128 + 90 * np.sin((y + 2 * t) / 20)
    blue = 128 + 60 * np.sin((x + y) / 30)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def encode(frames, tmp_path, *, kind="video", fps=24, index=0, given=None, finer=()):
    clip, given = Clip(frames=frames, seed=7), given or context(tmp_path)
    return encode_asset(clip, asset_index=index, kind=kind, fps=fps, workdir=tmp_path, context=given, finer=finer)


@pytest.mark.parametrize("fps", [8, 24])
@pytest.mark.parametrize("frames", [1, 2, 9, 83])
def test_frames_rate_and_size_are_exactly_what_was_asked(tmp_path, frames, fps):
    clip = moving(frames)
    media = encode(clip, tmp_path, fps=fps)
    assert media.path == tmp_path / "0.mp4"
    assert (media.width, media.height, media.frames, media.fps) == (64, 96, frames, float(fps))
    assert media.duration == pytest.approx(frames / fps)
    assert (media.format, media.seed, media.clip is clip) == ("mp4", 7, True)
    assert media.file_size_bytes == media.path.stat().st_size
    decoded = read_frames(media.path)
    assert decoded.shape == clip.shape
    assert psnr(decoded, clip) > 35
    assert names(tmp_path) == ["0.mp4"]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 48), (128, 720), (1280, 64), (98, 50)])
def test_every_even_size_comes_out_as_it_is(tmp_path, width, height):
    media = encode(moving(2, height, width), tmp_path)
    assert (media.width, media.height) == (width, height)
    assert read_frames(media.path).shape == (2, height, width, 3)


def test_what_was_measured_is_what_ffmpeg_reads(tmp_path):
    media = encode(moving(9), tmp_path, fps=12)
    told = subprocess.run([ffmpeg_path(), "-i", media.path, "-f", "null", "-"], capture_output=True, text=True, check=True).stderr
    assert re.findall(r"frame=\s*(\d+)", told)[-1] == "9"
    assert "64x96" in told
    assert "12 fps" in told
    assert "Duration: 00:00:00.75" in told
    assert re.search(r"yuv420p\(tv, bt709", told)
    assert "h264" in told


def test_players_can_start_before_the_file_is_whole(tmp_path):
    assert probe(encode(moving(9), tmp_path).path).faststart


@pytest.mark.parametrize(("frames", "starts"), [(83, [1, 42]), (48, [1, 25]), (47, [1])])
def test_decoding_can_start_at_the_middle_frame_of_a_long_clip(tmp_path, frames, starts):
    data = encode(moving(frames), tmp_path).path.read_bytes()
    table = data.index(b"stss") + 8  # past the name, version and flags: a count, then the numbers of the frames, from 1
    assert list(struct.unpack_from(f">{1 + len(starts)}I", data, table)) == [len(starts), *starts]


@pytest.mark.parametrize(
    "color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 120, 40)]
)
def test_colours_survive(tmp_path, color):
    frames = np.full((3, 64, 64, 3), color, dtype=np.uint8)
    decoded = read_frames(encode(frames, tmp_path).path)
    assert np.abs(decoded.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("finer", [(0,), (-1,), (0, -1)])
def test_frames_that_must_match_a_reference_are_coded_finer_than_the_others(tmp_path, finer):
    """Dense detail in grey, so that what is lost is the encoder's doing and not that of the chroma's half resolution."""
    rng = np.random.default_rng(3)
    fine = np.repeat(rng.integers(0, 256, (96 + 20, 64, 1)), 3, axis=-1).astype(np.uint8)
    clip = np.stack([fine[shift : shift + 96] for shift in range(20)])
    plain, coded = (read_frames(encode(clip, tmp_path, index=index, finer=given).path) for index, given in enumerate([(), finer]))
    assert all(psnr(coded[end], clip[end]) > psnr(plain[end], clip[end]) + 3 for end in finer)
    beside = [1 if end == 0 else -2 for end in finer]  # or else the step to it would be the encoder's and not the clip's
    assert all(psnr(coded[frame], clip[frame]) > psnr(plain[frame], clip[frame]) + 2 for frame in beside)
    assert psnr(coded[10], clip[10]) > psnr(plain[10], clip[10]) - 1


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_in_short_clips_both_ends_can_be_finer(tmp_path, frames):
    assert encode(moving(frames), tmp_path, finer=(0, -1)).frames == frames


def test_edges_between_blocks_of_colour_survive(tmp_path):
    """Where they lie between the pixels of the halved chroma, averaging leaves them as they are."""
    blocks = np.random.default_rng(0).integers(0, 2, (12, 8, 3)).astype(np.uint8) * 255
    frames = np.repeat(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[None], 3, axis=0)
    chroma = subprocess.run(
        [ffmpeg_path(), "-v", "error", "-i", encode(frames, tmp_path).path, "-frames:v", "1", "-f", "rawvideo", "-"],
        capture_output=True, check=True,
    ).stdout[96 * 64 :]  # fmt: skip
    halved = np.frombuffer(chroma, np.uint8).reshape(2, 48, 32).astype(int)
    inner = halved.reshape(2, 12, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    assert np.abs(inner - np.median(inner, axis=1, keepdims=True)).max() <= 6


def test_equal_frames_give_equal_files(tmp_path):
    first = encode(moving(20), tmp_path, index=0).path.read_bytes()
    second = encode(moving(20), tmp_path, index=1).path.read_bytes()
    assert first == second


def test_frames_of_a_mapped_file_and_of_any_layout_are_taken(tmp_path):
    frames = moving(9)
    frames.tofile(tmp_path / "frames")
    mapped = np.memmap(tmp_path / "frames", np.uint8, "r", shape=frames.shape)
    expected = encode(frames, tmp_path).path.read_bytes()
    assert encode(mapped, tmp_path, index=1).path.read_bytes() == expected
    backwards = np.ascontiguousarray(frames[::-1, :, ::-1])
    assert encode(backwards[::-1, :, ::-1], tmp_path, index=2).path.read_bytes() == expected


def test_an_image_is_kept_exactly(tmp_path):
    frames = moving(1)
    media = encode(frames, tmp_path, kind="image", index=3)
    assert media.path == tmp_path / "3.png"
    assert (media.width, media.height, media.frames, media.fps, media.duration) == (64, 96, 1, 0.0, 0.0)
    assert (read_frames(media.path) == frames).all()
    assert media.path.read_bytes() == encode(frames, tmp_path, kind="image", index=4).path.read_bytes()


def test_encoding_again_replaces_the_file(tmp_path):
    encode(moving(9), tmp_path)
    assert encode(moving(2), tmp_path).frames == 2
    assert probe(tmp_path / "0.mp4").frames == 2


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        (np.zeros((2, 64, 64, 3), dtype=np.float32), "video"),
        (np.zeros((64, 64, 3), dtype=np.uint8), "video"),
        (np.zeros((2, 64, 64, 4), dtype=np.uint8), "video"),
        (np.zeros((0, 64, 64, 3), dtype=np.uint8), "video"),
        (np.zeros((2, 63, 64, 3), dtype=np.uint8), "video"),
        (np.zeros((2, 64, 64, 3), dtype=np.uint8), "image"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_shape(tmp_path, frames, kind):
    with pytest.raises(EncodingFailed):
        encode(frames, tmp_path, kind=kind)
    assert names(tmp_path) == []


def test_cancelling_kills_ffmpeg_and_leaves_nothing(tmp_path):
    given = context(tmp_path)
    threading.Timer(0.3, given.cancel).start()
    start = time.monotonic()
    with pytest.raises(JobCancelled):
        encode(np.broadcast_to(moving(1, 720, 1280), (5000, 720, 1280, 3)), tmp_path, given=given)
    assert time.monotonic() - start < 3
    assert children() == []
    assert names(tmp_path) == []


def test_a_deadline_ends_an_ffmpeg_that_hangs(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "import time; time.sleep(60)")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(DeadlineExceeded):
        encode(moving(9), work, given=context(work, 0.5))
    assert children() == []
    assert names(work) == []


def test_what_ffmpeg_says_is_in_the_error(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "import sys; print('x' * 5000 + ' the disk is full', file=sys.stderr); sys.exit(3)")
    with pytest.raises(EncodingFailed, match=r"ended with 3: x+ the disk is full$") as caught:
        encode(np.broadcast_to(moving(1, 480, 832), (83, 480, 832, 3)), tmp_path)
    assert len(str(caught.value)) < 2200


def test_an_ffmpeg_that_dies_is_an_error(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EncodingFailed, match="-9"):
        encode(moving(9), tmp_path)


def test_a_file_that_is_not_what_was_asked_is_an_error(tmp_path, monkeypatch):
    short = encode(moving(2), tmp_path, index=5).path
    copy = f"import sys, shutil; sys.stdin.buffer.read(); shutil.copy({str(short)!r}, sys.argv[-1])"
    fake_ffmpeg(tmp_path, monkeypatch, copy)
    with pytest.raises(EncodingFailed, match="frames=2"):
        encode(moving(9), tmp_path)
    fake_ffmpeg(tmp_path, monkeypatch, "import sys; sys.stdin.buffer.read(); open(sys.argv[-1], 'w').close()")
    with pytest.raises(EncodingFailed):
        encode(moving(9), tmp_path)


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    for kind in ("image", "video"):
        with pytest.raises(EncodingFailed):
            encode(moving(1), tmp_path / "gone", kind=kind)


def test_the_ffmpeg_of_the_environment_comes_first(tmp_path, monkeypatch):
    program = fake_ffmpeg(tmp_path, monkeypatch, "pass")
    assert ffmpeg_path() == str(program)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    ffmpeg_path.cache_clear()
    with pytest.raises(EncodingFailed, match="IMAGEIO_FFMPEG_EXE"):
        ffmpeg_path()


@pytest.mark.parametrize(("told", "taken"), [("Encoder libx264 [libx264 H.264]", True), ("Codec is not recognized", False)])
def test_the_ffmpeg_on_path_is_taken_if_it_has_x264(tmp_path, monkeypatch, told, taken):
    program = script(tmp_path / "ffmpeg", f"print({told!r})")
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    ffmpeg_path.cache_clear()
    assert (ffmpeg_path() == str(program)) is taken


@pytest.fixture(autouse=True)
def _forget_the_choice():
    ffmpeg_path.cache_clear()
    yield
    ffmpeg_path.cache_clear()


def fake_ffmpeg(folder, monkeypatch, code):
    program = script(folder / "my-ffmpeg", code)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    encoding.ffmpeg_path.cache_clear()
    return program


def script(path, code):
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


def children():
    return [child for child in psutil.Process().children() if "ffmpeg" in " ".join(child.cmdline())]


def names(folder):
    return [path.name for path in folder.iterdir()]
