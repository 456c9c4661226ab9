"""The plan of a job's frame processors: fewer frames from the model, the asked number in the file, sizes multiplied."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from tests.sample_jobs import resolve
from wan_host import FrameProcessor, FrameStep, InvalidJob
from wan_host.frame_processors import plan

SMOOTH = FrameProcessor(rate=2, media=frozenset({"video"}))
LARGE = FrameProcessor(scale=2)
VIDEO = replace(resolve().request, frames=81, width=480, height=832)
IMAGE = resolve(type="image_fast").request


def refusal(request, *processors):
    with pytest.raises(InvalidJob) as caught:
        plan(request, processors)
    return str(caught.value)


def test_without_processors_nothing_changes():
    request = plan(VIDEO, [])
    assert (request.frames, request.postprocess, request.published_frames) == (81, (), 81)


def test_processors_are_planned_in_the_given_order():
    smooth_first = plan(VIDEO, [("smooth", SMOOTH), ("large", LARGE)])
    assert smooth_first.postprocess == (
        FrameStep(plugin="smooth", frames=81, width=480, height=832),
        FrameStep(plugin="large", frames=81, width=960, height=1664),
    )
    large_first = plan(VIDEO, [("large", LARGE), ("smooth", SMOOTH)])
    assert large_first.postprocess == (
        FrameStep(plugin="large", frames=41, width=960, height=1664),
        FrameStep(plugin="smooth", frames=81, width=960, height=1664),
    )
    for request in (smooth_first, large_first):
        assert (request.frames, request.width, request.height, request.published_frames) == (41, 480, 832, 81)


def test_two_that_interpolate_leave_the_model_a_quarter():
    request = plan(VIDEO, [("one", SMOOTH), ("two", SMOOTH)])
    assert (request.frames, [step.frames for step in request.postprocess]) == (21, [41, 81])


@given(frames=st.integers(1, 400), rate=st.integers(1, 8))
def test_what_a_processor_needs_is_the_least_that_can_give_the_frames(frames, rate):
    needed = FrameProcessor(rate=rate).frames_needed(frames)
    assert (needed - 1) * rate + 1 >= frames
    assert needed == 1 or (needed - 2) * rate + 1 < frames


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_to_leave_any_out_are_refused(frames):
    assert refusal(replace(VIDEO, frames=frames), ("smooth", SMOOTH)) == (
        f"config.frames: {frames} is not allowed; smooth needs at least 3: it is given the first, the last, and fewer between"
    )
    assert plan(replace(VIDEO, frames=3), [("smooth", SMOOTH)]).frames == 2


def test_too_few_frames_for_two_that_interpolate_are_refused():
    assert "one needs at least 3 (2 are left by what follows it)" in refusal(
        replace(VIDEO, frames=3), ("one", SMOOTH), ("two", SMOOTH)
    )


def test_a_processor_of_videos_refuses_an_image_job():
    assert refusal(IMAGE, ("large", LARGE), ("smooth", SMOOTH)) == (
        "config.postprocess.1: 'smooth' is not allowed; it serves video jobs, and image_fast makes an image"
    )
    assert plan(IMAGE, [("large", LARGE)]).postprocess[0].width == 2 * IMAGE.width


def test_a_processor_stands_in_the_list_once():
    assert refusal(VIDEO, ("large", LARGE), ("large", LARGE)) == (
        "config.postprocess.1: 'large' is not allowed; it is in the list already; each processor runs once"
    )


def test_a_file_that_players_cannot_decode_is_refused():
    huge = replace(VIDEO, width=1280, height=720)
    assert plan(huge, [("large", LARGE)]).postprocess[0].width == 2560
    assert refusal(huge, ("large", LARGE), ("larger", LARGE)) == (
        "config.postprocess.1: 'larger' is not allowed; it would make 5120x2880; at most 4096 pixels a side"
    )
