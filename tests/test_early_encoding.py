"""Encoding while the lane decodes: the same file, and nothing of it where the clip does not come to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from wan_host import encoding
from wan_host.errors import EncodingFailed, JobCancelled, LaneCrashed
from wan_host.request import Clip, Generation, GenerationRequest
from wan_host.run import Run
from wan_host.settings import load_settings
from wan_host.stages import Stages

FRAMES = 17


def request(**values):
    defaults = {
        "job_id": "j",
        "job_type": "video_fast",
        "media": "video",
        "prompt": "",
        "width": 64,
        "height": 96,
        "frames": FRAMES,
        "fps": 8,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "sample_shift": 3.0,
        "sample_solver": "unipc",
        "seed": 7,
    }
    return GenerationRequest(**{**defaults, **values})


def moving(seed=0):
    frame, row, column = np.mgrid[0:FRAMES, 0:96, 0:64]
    return np.stack([row + 2 * frame, column + 3 * frame, row + column + seed], axis=-1).astype(np.uint8)


class Pool:
    """A lane that shows ``show`` frames of ``shown``, and returns ``clips`` or raises."""

    generate_lanes = 1

    def __init__(self, shown, returned, *, show=FRAMES, error=None):
        self.shown, self.returned, self.show, self.error = shown, returned, show, error

    async def generate(self, run, model, request, plan):
        growing = np.zeros_like(self.shown)
        for count in range(1, self.show + 1):
            growing[:count] = self.shown[:count]
            run.on_frames(0, growing, count)
            await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error
        frames = growing if self.returned is self.shown else self.returned
        return SimpleNamespace(generation=Generation(clips=(Clip(frames=frames, seed=7),)))


async def make(pool, tmp_path, run=None, **values):
    stages = Stages(hooks=None, pool=pool, settings=load_settings())
    workdir = tmp_path / "work"
    workdir.mkdir(exist_ok=True)
    run = run or Run(job_id="j", user_id="u", token=1, attempt=1, deadline=time.monotonic() + 60, workdir=workdir)
    run.workdir = workdir
    try:
        _, (media,) = await stages._generate(run, None, request(**values), None)
    finally:
        assert run.on_frames is None
    return media, run


async def written(run):
    """Wait until the file is there."""
    async with asyncio.timeout(20):
        while "0.mp4" not in [path.name for path in run.workdir.iterdir()]:  # noqa: ASYNC110  # a file is no event
            await asyncio.sleep(0.01)


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "work").iterdir())


@pytest.fixture
def endless_ffmpeg(tmp_path, monkeypatch):
    """Take an ffmpeg that reads every frame and then does not end."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(encoding, "ffmpeg_path", lambda: str(program))


async def test_the_file_is_the_one_that_is_made_afterwards_and_is_begun_before(tmp_path):
    pool = Pool(moving(), moving(), show=0)
    afterwards, _ = await make(pool, tmp_path)
    expected = afterwards.path.read_bytes()
    afterwards.path.unlink()

    class Waiting(Pool):
        async def generate(self, run, *arguments):
            result = await super().generate(run, *arguments)
            await written(run)
            return result

    media, run = await make(Waiting(shown := moving(), shown), tmp_path)
    assert media.path.read_bytes() == expected
    assert np.array_equal(media.clip, moving())
    assert names(tmp_path) == ["0.mp4"]
    assert "encode" in run.seconds


async def test_other_frames_than_those_that_were_shown_are_encoded(tmp_path):
    afterwards, _ = await make(Pool(moving(90), moving(90), show=0), tmp_path)
    expected = afterwards.path.read_bytes()
    media, _ = await make(Pool(moving(), moving(90)), tmp_path)
    assert media.path.read_bytes() == expected
    assert names(tmp_path) == ["0.mp4"]


@pytest.mark.parametrize("show", [1, 9, FRAMES])
async def test_a_lane_that_fails_leaves_no_partial_file(tmp_path, show):
    shown = moving()
    with pytest.raises(LaneCrashed, match="gone"):
        await make(Pool(shown, shown, show=show, error=LaneCrashed("the lane is gone")), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("endless_ffmpeg")
async def test_a_lane_that_fails_once_all_is_shown_waits_for_no_encoder(tmp_path):
    shown, started = moving(), time.monotonic()
    with pytest.raises(LaneCrashed, match="gone"):
        await make(Pool(shown, shown, error=LaneCrashed("the lane is gone")), tmp_path)
    assert time.monotonic() - started < 5
    assert names(tmp_path) == []


async def test_a_lane_that_fails_after_the_file_is_written_leaves_none(tmp_path):
    class Late(Pool):
        async def generate(self, run, *arguments):
            with contextlib.suppress(LaneCrashed):
                await super().generate(run, *arguments)
            await written(run)
            raise self.error

    with pytest.raises(LaneCrashed, match="gone"):
        await make(Late(shown := moving(), shown, error=LaneCrashed("the lane is gone")), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("endless_ffmpeg")
@pytest.mark.parametrize("seconds", [0.2, 1], ids=["the lane works", "the lane has ended"])
async def test_a_worker_that_stops_waits_for_no_encoder_and_leaves_none(tmp_path, seconds):
    task = asyncio.create_task(make(Pool(shown := moving(), shown), tmp_path))
    await asyncio.sleep(seconds)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 5
    assert names(tmp_path) == []
    assert "sleep" not in [child.name() for child in psutil.Process().children()]


async def test_a_cancel_in_the_middle_ends_the_encoder(tmp_path):
    run = Run(job_id="j", user_id="u", token=1, attempt=1, deadline=time.monotonic() + 60, workdir=tmp_path)

    class Cancelled(Pool):
        async def generate(self, run, *arguments):
            asyncio.get_running_loop().call_later(0.1, run.cancel)
            await super().generate(run, *arguments)
            await asyncio.sleep(0.5)
            raise JobCancelled("job j was cancelled")

    shown = moving()
    with pytest.raises(JobCancelled):
        await make(Cancelled(shown, shown, show=9), tmp_path, run)
    assert names(tmp_path) == []


async def test_an_encoder_that_fails_early_fails_the_job_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ffmpeg_path", lambda: "/bin/false")
    shown = moving()
    with pytest.raises(EncodingFailed, match="ffmpeg ended with 1"):
        await make(Pool(shown, shown), tmp_path)
    assert names(tmp_path) == []


async def test_a_frame_that_never_comes_is_waited_for_no_longer_than_the_job_may_take(tmp_path):
    run = Run(job_id="j", user_id="u", token=1, attempt=1, deadline=time.monotonic() + 0.5, workdir=tmp_path)

    class Late(Pool):
        async def generate(self, run, *arguments):
            await super().generate(run, *arguments)
            await asyncio.sleep(1)
            self.ended = [path.name for path in run.workdir.iterdir()]
            raise LaneCrashed("late")

    pool = Late(shown := moving(), shown, show=3)
    with pytest.raises(LaneCrashed):
        await make(pool, tmp_path, run)
    assert pool.ended == []


async def test_an_image_is_written_once_it_is_there(tmp_path):
    shown = moving()[:1]
    media, _ = await make(Pool(shown, shown, show=1), tmp_path, media="image", frames=1)
    assert (media.format, media.frames) == ("png", 1)
    assert names(tmp_path) == ["0.png"]
