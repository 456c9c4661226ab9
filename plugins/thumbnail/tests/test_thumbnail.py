"""What is made beside an asset: its size, its format, its frame, and nothing more in the file than the picture."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from dataclasses import replace
from itertools import accumulate, pairwise

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
from wan_host.encoding import encode_asset
from wan_host.media import Media
from wan_host.request import Clip

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


def test_it_is_a_webp_of_quality_85(video, context):
    (made,) = derive(video, context, PLAIN)
    small = Image.fromarray(video.clip[6]).resize((154, 256), Image.Resampling.LANCZOS, reducing_gap=2.0)
    expected = io.BytesIO()
    small.save(expected, "WEBP", quality=85)
    assert made.path.read_bytes() == expected.getvalue()


def test_the_sheet_reads_as_a_page(video, context):
    media = replace(video, clip=numbered(27), frames=27, width=64, height=64)
    *_, sheet = derive(media, context, ThumbnailSettings(sheet=True))
    page = read(sheet)
    cells = [(column * 260, row * 260, column * 260 + 256, row * 260 + 256) for row in range(3) for column in range(3)]
    assert [number(page.crop(cell)) for cell in cells] == [1, 4, 7, 10, 13, 16, 19, 22, 25]


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


def encoded(frames, context, fps=24):
    """Encode as the host does, and forget the frames."""
    clip = Clip(frames=frames, seed=1)
    media = encode_asset(clip, asset_index=0, kind="video", fps=fps, workdir=context.workdir, context=context)
    return replace(media, clip=None)


def numbered(count):
    """Return frames of 64x64 that show their number: eight bars, white for the bits that are set."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    return np.repeat(np.broadcast_to(bits[:, None, :, None] * 255, (count, 64, 8, 3)), 8, axis=2).astype(np.uint8)


def number(image):
    """Return the number that a thumbnail of such a frame shows."""
    bars = np.asarray(image.convert("L")).reshape(256, 8, 32).mean(axis=(0, 2))
    return sum(1 << bit for bit in range(8) if bars[bit] > 128)


def samples(path):
    """Return where the encoded frames stand in the file, in the order of decoding: (start, end) in bytes."""
    data = path.read_bytes()
    table = data.index(b"stsz") + 4
    (count,) = struct.unpack_from(">I", data, table + 8)
    ends = [data.index(b"mdat") + 4 + size for size in accumulate(struct.unpack_from(f">{count}I", data, table + 12))]
    return list(pairwise([data.index(b"mdat") + 4, *ends]))


def blank(path, start, end):
    data = bytearray(path.read_bytes())
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


@pytest.mark.parametrize("fps", [8, 23, 24])
@pytest.mark.parametrize("count", [1, 2, 17, 48, 81, 83])
def test_seeking_finds_exactly_the_middle_frame(count, fps, context):
    (made,) = derive(encoded(numbered(count), context, fps), context, PLAIN)
    assert number(read(made)) == count // 2


def test_seeking_gives_the_colours_of_the_frames(context):
    down, across = np.mgrid[0:64, 0:64] * 4
    frames = np.broadcast_to(np.stack([down, across, 255 - down], axis=-1).astype(np.uint8), (3, 64, 64, 3))
    media = encoded(frames, context)
    seen, sought = (
        np.asarray(read(next(iter(derive(given, context, PLAIN)))).convert("RGB")).astype(int)
        for given in (replace(media, clip=frames), media)
    )
    assert np.abs((sought - seen).mean(axis=(0, 1))).max() < 0.7  # without accurate rounding all channels are darker by 2
    assert np.abs(sought - seen).mean() < 3


def test_what_comes_before_the_middle_of_a_long_video_is_not_decoded(context):
    media = encoded(numbered(83), context)
    places = samples(media.path)
    blank(media.path, places[0][0], places[40][1])
    (made,) = derive(media, context, PLAIN)
    assert number(read(made)) == 41


def test_what_comes_after_the_middle_of_a_short_video_is_not_decoded(context):
    media = encoded(numbered(40), context)
    places = samples(media.path)
    blank(media.path, places[30][0], places[-1][1])
    (made,) = derive(media, context, PLAIN)
    assert number(read(made)) == 20


def test_a_video_that_ends_too_early_is_named(context):
    media = replace(encoded(numbered(9), context), frames=40, duration=40 / 24)
    with pytest.raises(FramesUnreadable, match=r"^0\.mp4: ffmpeg gave 0 of 1 frames: the file is too short$"):
        list(derive(media, context, PLAIN))
    with pytest.raises(FramesUnreadable, match=r"^0\.mp4: ffmpeg gave 2 of 9 frames: the file is too short$"):
        derive_module.contact_sheet(media, context)


def test_a_file_that_is_no_video_is_named(video, context, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(FramesUnreadable, match=r"^broken\.mp4: ffmpeg gave 0 of 1 frames: "):
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
