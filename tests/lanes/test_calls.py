"""What a caller of a lane can rely on while nothing breaks the child: these tests share one."""

from __future__ import annotations

import asyncio
import hashlib
import time

import numpy as np
import pytest
import pytest_asyncio
from lane_fakes import frames_of, request, until

from wan_host import errors
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.supervisor import Lane
from wan_host.request import EnhanceRequest, FrameStep, References

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lane():
    lane = Lane(name="shared", device="cpu", kind="generate", hooks="lane_fakes:hooks", limits=LaneLimits(cancel_grace=5.0))
    await lane.start()
    yield lane
    await lane.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def lane(shared_lane):
    pid = shared_lane.state.pid
    yield shared_lane
    assert shared_lane.state.pid == pid
    assert shared_lane.state.restarts == {}
    for model in shared_lane.state.loaded:
        await shared_lane.unload(model)


def digest(frames):
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


async def test_generates_the_very_frames_that_the_plugin_made(lane):
    job = request(num_images=2)
    result = await lane.generate("good", job)
    for i, clip in enumerate(result.generation.clips):
        assert clip.seed == job.seed + i
        assert digest(clip.frames) == digest(frames_of(job, job.seed + i))
        assert not clip.frames.flags.writeable
    assert result.generation.metadata == {"steps": 4}


async def test_reports_where_the_seconds_went(lane):
    spent = (await lane.generate("slow", request(num_inference_steps=3))).spent
    assert 0.3 <= spent.stages["denoise"] < 2
    assert 0.1 <= spent.stages["text_encode"] < 1
    assert len(spent.steps) == 3
    assert sum(spent.stages.values()) == pytest.approx(spent.seconds, abs=0.02)
    assert spent.busy == 0.0  # no GPU


async def test_passes_references_in_whole(lane):
    image = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
    job = request(width=512, height=256, frames=1, references=References(image=image))
    result = await lane.generate("reference", job)
    assert digest(result.generation.clips[0].frames[0]) == digest(image)


async def test_calls_wait_for_their_turn(lane):
    results = await asyncio.gather(*(lane.generate("good", request(f"job-{i}", seed=i)) for i in range(5)))
    assert [result.generation.clips[0].seed for result in results] == list(range(5))


async def test_enhances_prompts(lane):
    result = await lane.enhance("good", "qwen", EnhanceRequest(prompt="a cat", job_type="video_fast", media="video"))
    assert result.enhancement.prompt == "a cat, in detail"
    assert result.enhancement.source == "qwen"
    with pytest.raises(errors.GenerationFailed, match="plugin 'wrong' returned str; expected an Enhancement"):
        await lane.enhance("good", "wrong", EnhanceRequest(prompt="a cat", job_type="video_fast", media="video"))


async def test_frame_processors_run_in_the_order_of_the_request(lane):
    steps = (
        FrameStep(plugin="double", frames=18, width=128, height=128),
        FrameStep(plugin="enlarge", frames=18, width=256, height=256),
    )
    result = await lane.generate("good", request(postprocess=steps))
    assert result.generation.clips[0].frames.shape == (18, 256, 256, 3)
    assert "process_frames" in result.stage_seconds


@pytest.mark.parametrize(
    ("plugin", "made"), [("floats", r"float32 of shape \(9, 128, 128, 3\)"), ("double", r"uint8 of shape \(18, 128, 128, 3\)")]
)
async def test_a_frame_processor_that_makes_something_else_than_planned_is_named(lane, plugin, made):
    wanted = r"expected uint8 of shape \(9, 128, 128, 3\)"
    with pytest.raises(errors.GenerationFailed, match=rf"process_frames of plugin '{plugin}': frames are {made}; {wanted}"):
        await lane.generate("good", request(postprocess=(FrameStep(plugin=plugin, frames=9, width=128, height=128),)))


async def test_unload_closes_and_forgets_the_model(lane):
    await lane.load("closeable")
    await lane.load("good")
    assert lane.state.loaded == ("closeable", "good")
    await lane.unload("closeable")
    await lane.unload("never-loaded")
    assert lane.state.loaded == ("good",)
    await until(lambda: "closed by the lane" in lane._keeper.child.tail)


async def test_each_error_of_a_plugin_arrives_as_its_class_and_the_lane_lives_on(lane):
    pid = lane.state.pid
    cases = {
        "raises": (errors.GenerationFailed, r"generating with model 'raises' \(plugin 'fake'\) raised ValueError: the sampler"),
        "refuses": (errors.UnsupportedRequest, "no such mode here; there is none"),
        "invalid": (errors.InvalidJob, "config.frames: 5 is not allowed; one of 1, 9"),
        "system-exit": (errors.GenerationFailed, "raised SystemExit: 5"),
        "load-raises": (errors.ModelLoadFailed, "raised FileNotFoundError: no such folder"),
        "load-none": (errors.ModelLoadFailed, "plugin 'fake' returned None"),
        "nowhere": (errors.UnknownModel, "'nowhere' is not offered"),
        "wrong-shape": (errors.GenerationFailed, r"plugin 'fake': clip 0: .*\(5, 128, 128, 3\); expected .*\(9, 128, 128, 3\)"),
        "wrong-dtype": (errors.GenerationFailed, "float32 of shape .* expected uint8"),
        "wrong-count": (errors.GenerationFailed, r"returned 0 clips; expected 1 \(num_images\)"),
        "wrong-seed": (errors.GenerationFailed, "clip 0 has seed 99; expected 7"),
        "wrong-type": (errors.GenerationFailed, "returned list; expected a Generation"),
        "wrong-metadata": (errors.GenerationFailed, "metadata 'path' is pathlib.PosixPath; expected str"),
    }
    for model, (kind, message) in cases.items():
        with pytest.raises(kind, match=message) as raised:
            await lane.generate(model, request())
        assert type(raised.value) is kind, model
    assert lane.state.pid == pid
    await lane.generate("good", request())


async def test_a_load_that_takes_too_long_fails_as_a_load(lane):
    with pytest.raises(errors.ModelLoadFailed, match=r"took longer than 0\.6 s"):
        await lane.load("load-slow", timeout=0.6)
    assert lane.state.restarts == {}


async def test_cancel_ends_a_job_within_one_step(lane):
    pid = lane.state.pid
    running = asyncio.create_task(lane.generate("slow", request(num_inference_steps=50)))
    await until(lambda: lane.state.step == 2)
    lane.cancel("another job")
    lane.cancel("job-1")
    begun = time.monotonic()
    with pytest.raises(errors.JobCancelled, match="job job-1 was cancelled"):
        await running
    assert time.monotonic() - begun < 1  # fifty steps take five
    assert lane.state.pid == pid
    assert lane.state.loaded == ("slow",)


async def test_cancel_is_recognised_inside_what_a_library_makes_of_it(lane):
    running = asyncio.create_task(lane.generate("wrapped-cancel", request(num_inference_steps=50)))
    await until(lambda: lane.state.step == 2)
    lane.cancel("job-1")
    with pytest.raises(errors.JobCancelled):
        await running


async def test_a_job_that_waits_is_cancelled_without_touching_the_lane(lane):
    running = asyncio.create_task(lane.generate("slow", request("first")))
    waiting = asyncio.create_task(lane.generate("slow", request("second")))
    await until(lambda: lane.state.step == 1)
    assert lane.state.waiting == 1
    lane.cancel("second")
    with pytest.raises(errors.JobCancelled):
        await waiting
    assert lane.state.job_id == "first"
    await running


async def test_a_load_is_cancelled_with_its_job(lane):
    running = asyncio.create_task(lane.generate("load-slow", request()))
    await until(lambda: lane.state.status == "loading" and lane.state.stage == "load")
    lane.cancel("job-1")
    with pytest.raises(errors.JobCancelled):
        await running
    assert lane.state.loaded == ()


async def test_a_caller_that_goes_away_takes_its_job_along(lane):
    pid = lane.state.pid
    running = asyncio.create_task(lane.generate("slow", request(num_inference_steps=100)))
    await until(lambda: lane.state.step == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    begun = time.monotonic()
    await lane.generate("good", request("job-2"))
    assert time.monotonic() - begun < 1
    assert lane.state.pid == pid


async def test_a_deadline_ends_the_job_at_its_next_step(lane):
    pid = lane.state.pid
    await lane.load("slow")
    begun = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=r"ran out of time \(stage denoise, step \d of 100\)"):
        await lane.generate("slow", request(num_inference_steps=100), deadline=begun + 0.5)
    assert 0.5 <= time.monotonic() - begun < 2
    assert lane.state.pid == pid
    with pytest.raises(errors.DeadlineExceeded):
        await lane.generate("good", request(), deadline=time.monotonic() - 1)
