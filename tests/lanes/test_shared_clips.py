"""Frames that the host can read before the lane has made them all."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from lane_fakes import frames_of, request, until

from wan_host import errors
from wan_host.lanes.state import JobFrames
from wan_host.request import FrameStep


class Watcher(list):
    """Events; frames are looked at when they are told of, as an encoder would."""

    def append(self, event):
        if isinstance(event, JobFrames):
            super().append((event, event.frames[: event.count].copy()))


async def test_frames_are_there_as_soon_as_they_are_told_of(new_lane):
    seen = Watcher()
    lane = await new_lane(events=seen)
    running = asyncio.create_task(lane.generate("early", request()))
    await until(lambda: seen)
    assert lane.state.status == "busy"
    result = await running
    expected = frames_of(request(), 7)
    assert [event.count for event, _ in seen] == list(range(1, 10))
    for event, frames in seen:
        assert np.array_equal(frames, expected[: event.count])
    (clip,) = result.generation.clips
    assert clip.frames is seen[0][0].frames
    assert np.array_equal(clip.frames, expected)
    with pytest.raises(ValueError, match="read-only"):
        clip.frames[0] = 0


async def test_every_image_has_its_own(new_lane):
    seen = Watcher()
    lane = await new_lane(events=seen)
    asked = request(media="image", frames=1, num_images=3)
    result = await lane.generate("early", asked)
    assert [(event.clip, event.count) for event, _ in seen] == [(0, 1), (1, 1), (2, 1)]
    for number, clip in enumerate(result.generation.clips):
        assert np.array_equal(clip.frames, frames_of(asked, 7 + number))


async def test_other_frames_than_those_that_were_shown_count(new_lane):
    seen = Watcher()
    lane = await new_lane(events=seen)
    (clip,) = (await lane.generate("early-and-others", request())).generation.clips
    assert clip.frames is not seen[0][0].frames
    assert np.array_equal(clip.frames, frames_of(request(), 7))


async def test_frames_that_are_yet_to_be_processed_are_not_shown(new_lane):
    seen = Watcher()
    lane = await new_lane(events=seen)
    step = FrameStep(plugin="double", frames=18, width=128, height=128)
    (clip,) = (await lane.generate("early", request(postprocess=(step,)))).generation.clips
    assert not seen
    assert np.array_equal(clip.frames, np.repeat(frames_of(request(), 7), 2, axis=0))


async def test_a_failure_after_some_frames_is_a_failure(new_lane):
    lane = await new_lane()
    with pytest.raises(errors.GenerationFailed, match="the last chunk did not fit"):
        await lane.generate("early-and-fails", request())
    (clip,) = (await lane.generate("early", request(seed=8))).generation.clips
    assert np.array_equal(clip.frames, frames_of(request(), 8))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the maps of a process from /proc")
@pytest.mark.parametrize("model", ["early", "early-and-fails"])
async def test_a_lane_that_waits_holds_no_frames_of_its_last_clip(new_lane, model):
    lane = await new_lane()
    await lane.load("good")  # the lane is up
    maps = Path(f"/proc/{lane.state.pid}/maps")
    with contextlib.suppress(errors.GenerationFailed):
        await lane.generate(model, request())
    await until(lambda: "wan-host-frames" not in maps.read_text())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("shape", r"shape: \(128, 128, 3\) is not allowed; expected \(9, 128, 128, 3\)"),
        ("seed", "seed: 8 is not allowed; expected 7 to 7"),
        ("no room", "frames_ready: seed 7 has no frames; ask for them by clip_frames first"),
        ("backwards", "frames_ready: 3 is not allowed; expected 4 to 9"),
        ("too many", "frames_ready: 10 is not allowed; expected 0 to 9"),
    ],
)
async def test_what_cannot_be_is_named(new_lane, wrong, message):
    lane = await new_lane()
    with pytest.raises(errors.GenerationFailed, match=message):
        await lane.generate("early-and-wrong", request(prompt=wrong))
