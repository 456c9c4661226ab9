"""What is made beside an asset: its size, its format, its frame, and nothing more in the file than the picture."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pluggy
import pytest
import wan_host_thumbnail
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from wan_host_thumbnail import derive as derive_module
from wan_host_thumbnail.derive import derive
from wan_host_thumbnail.frames import FramesUnreadable, small_size, spread
from wan_host_thumbnail.settings import ThumbnailSettings, read_settings

from wan_host import JobCancelled, SettingsError, hookspecs
from wan_host.context import StageContext
from wan_host.media import Media

PLAIN = ThumbnailSettings(animated=False, sheet=False)


@pytest.fixture
def context(tmp_path):
    return StageContext(job_id="job", user_id="user", workdir=tmp_path, deadline=time.monotonic() + 60)


@pytest.fixture
def frames():
    """Return 12 frames of 96x160, each of one grey value: frame i has 20 * i."""
    return np.broadcast_to((np.arange(12, dtype=np.uint8) * 20)[:, None, None, None], (12, 160, 96, 3)).copy()


@pytest.fixture
def video(tmp_path, frames):
    path = tmp_path / "0.mp4"
    command = [
        get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "96x160",
        "-r",
        "12",
        "-i",
        "-",
    ]
    command += ["-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)
    return Media(
        asset_index=0,
        kind="video",
        path=path,
        width=96,
        height=160,
        frames=12,
        fps=12.0,
        duration=1.0,
        format="mp4",
        file_size_bytes=path.stat().st_size,
        seed=1,
        clip=frames,
    )


def read(file):
    with Image.open(file.path) as image:
        image.load()
        return image


@pytest.mark.parametrize("at_hand", [True, False])
def test_the_thumbnail_is_the_middle_frame_at_256_pixels(at_hand, video, context):
    media = video if at_hand else replace(video, clip=None)
    (made,) = derive(media, context, PLAIN)
    assert (made.asset_index, made.role, made.content_type) == (0, "thumbnail", "image/webp")
    assert made.path == context.workdir / "0.thumb.webp"
    image = read(made)
    assert (image.format, image.size) == ("WEBP", (154, 256))
    assert abs(float(np.asarray(image.convert("RGB")).mean()) - 120) < 5


def test_it_holds_no_metadata(video, context):
    (made,) = derive(video, context, PLAIN)
    image = read(made)
    assert not image.getexif()
    assert not {"exif", "xmp", "icc_profile"} & set(image.info)


@pytest.mark.parametrize("size", [(16, 16), (480, 832), (1280, 64), (3, 2000)])
def test_the_longest_edge_is_256_and_the_aspect_is_kept(size):
    width, height = small_size(*size)
    assert max(width, height) == 256
    assert min(width, height) == max(1, round(256 * min(size) / max(size)))


@pytest.mark.parametrize("at_hand", [True, False])
def test_images_get_one_and_nothing_that_moves(at_hand, tmp_path, context):
    path = tmp_path / "3.png"
    pixels = np.full((64, 128, 3), 77, np.uint8)
    Image.fromarray(pixels).save(path)
    media = Media(
        asset_index=3,
        kind="image",
        path=path,
        width=128,
        height=64,
        frames=1,
        fps=0.0,
        duration=0.0,
        format="png",
        file_size_bytes=path.stat().st_size,
        seed=1,
        clip=pixels[None] if at_hand else None,
    )
    (made,) = derive(media, context, ThumbnailSettings(animated=True, sheet=True))
    assert made.path.name == "3.thumb.webp"
    assert read(made).size == (256, 128)


@pytest.mark.parametrize("at_hand", [True, False])
def test_the_settings_add_a_preview_that_moves_and_a_sheet(at_hand, video, context):
    media = video if at_hand else replace(video, clip=None)
    _, preview, sheet = derive(media, context, ThumbnailSettings(animated=True, sheet=True))
    assert (preview.role, sheet.role) == ("preview", "sheet")
    with Image.open(preview.path) as moving:
        assert (moving.n_frames, moving.size) == (10, (154, 256))
        moving.seek(moving.n_frames - 1)
        moving.load()
        assert moving.info["duration"] == 100
        assert float(np.asarray(moving.convert("RGB")).mean()) > 200
    with Image.open(sheet.path) as grid:
        assert grid.size == (3 * 154 + 2 * 4, 3 * 256 + 2 * 4)


def test_the_preview_never_exceeds_its_size(video, context):
    noise = np.random.default_rng(0).integers(0, 256, (40, 240, 256, 3), dtype=np.uint8)
    media = replace(video, clip=noise, width=256, height=240, frames=40, duration=4.0)
    assert len(derive_module.animate(media, context)) <= 500_000


def test_frames_are_spread_evenly():
    assert list(spread(9, 3)) == [1, 4, 7]
    assert list(spread(2, 9)) == [0, 1]
    assert list(spread(83, 9)) == sorted(set(spread(83, 9)))


def test_only_the_frames_up_to_the_middle_are_decoded(video, context, tmp_path):
    """The second half of the file is cut off, which only a whole decode would notice."""
    flat = tmp_path / "flat.mp4"
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", str(video.path), "-c", "copy", str(flat)], check=True)
    data = flat.read_bytes()
    start = data.index(b"mdat")
    cut = start + (data.index(b"moov") - start) * 9 // 10
    flat.write_bytes(data[:cut] + bytes(data.index(b"moov") - 4 - cut) + data[data.index(b"moov") - 4 :])
    (made,) = derive(replace(video, clip=None, path=flat), context, PLAIN)
    assert abs(float(np.asarray(read(made).convert("RGB")).mean()) - 120) < 5


def test_a_file_that_is_no_video_is_named(video, context, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(FramesUnreadable, match=r"^broken\.mp4: ffmpeg gave no frame: "):
        list(derive(replace(video, clip=None, path=broken), context, PLAIN))


def test_a_cancel_is_noticed(video, context):
    context.cancel()
    with pytest.raises(JobCancelled):
        list(derive(replace(video, clip=None), context, PLAIN))


def test_the_hook_reads_the_settings(video, context, monkeypatch):
    monkeypatch.setenv("WAN_HOST_THUMBNAIL_SHEET", "true")
    read_settings.cache_clear()
    assert [file.role for file in wan_host_thumbnail.postprocess(media=video, context=context)] == ["thumbnail", "sheet"]
    monkeypatch.setenv("WAN_HOST_THUMBNAIL_SHEET", "sometimes")
    read_settings.cache_clear()
    with pytest.raises(SettingsError, match="WAN_HOST_THUMBNAIL_SHEET: 'sometimes' is not allowed"):
        read_settings()
    read_settings.cache_clear()


def test_the_plugin_fits_the_hosts_specifications_and_is_light():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(wan_host_thumbnail)
    manager.check_pending()
    code = "import sys, wan_host_thumbnail; assert not {'numpy', 'PIL', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
