"""Blocking work of the stages: bounded, cancelled, and never mistaken for something else."""

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from wan_host.errors import DeadlineExceeded, JobCancelled, RetryableError
from wan_host.job import JobPolicy, resolve_job
from wan_host.model import JobDefaults, ModelInfo
from wan_host.payload import parse_payload
from wan_host.request import Enhancement
from wan_host.run import Run
from wan_host.settings import load_settings
from wan_host.stages import Stages


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr("wan_host.stages._GRACE_AFTER_DEADLINE", 0.05)
    return Stages(hooks=None, pool=SimpleNamespace(generate_lanes=1), settings=load_settings())


def run(seconds=30.0):
    return Run(
        job_id="j", user_id="u", token=1, attempt=1, deadline=time.monotonic() + seconds, workdir=Path(), stage="postprocess"
    )


async def test_an_enhanced_prompt_may_be_as_long_as_the_model_reads(monkeypatch, tmp_path):
    asked = []

    class Pool:
        enhancer = object()
        generate_lanes = 1

        async def enhance(self, run, request):
            asked.append(request)
            return Enhancement(prompt="a cat, slowly", source="x")

    model = ModelInfo(
        name="m",
        family="wan",
        runner="r",
        prompt_tokens=77,
        job_types={"video7b_fast_enhanced": JobDefaults(media="video", enhance=True)},
    )
    payload = parse_payload('{"id": "j", "user_id": "u", "type": "video7b_fast_enhanced", "prompt": "a cat"}')
    policy = JobPolicy(default_model="m", max_prompt_characters=100, frame_processors=frozenset())
    job = resolve_job(payload, models={"m": model}, policy=policy, seed=1)
    made = await Stages(hooks=None, pool=Pool(), settings=load_settings())._enhance(run(), job)
    assert (made.prompt, [request.max_tokens for request in asked]) == ("a cat, slowly", [77])


async def test_work_gets_a_context_within_the_jobs_deadline(stages):
    assert 4 < await stages._blocking(run(5), lambda context: context.remaining()) <= 5
    assert 4 < await stages._blocking(run(), lambda context: context.remaining(), timeout=5) <= 5


async def test_work_that_hangs_beyond_the_deadline_is_no_longer_waited_for(stages):
    release, contexts = threading.Event(), []

    def hang(context):
        contexts.append(context)
        release.wait(20)

    with pytest.raises(DeadlineExceeded, match="stage postprocess of job j did not end within its time"):
        await stages._blocking(run(0.1), hang)
    with pytest.raises(JobCancelled):
        contexts[0].check()
    release.set()


async def test_a_timeout_of_the_works_own_is_not_the_jobs_deadline(stages):
    def fail(context):
        raise TimeoutError("the socket timed out")

    with pytest.raises(TimeoutError, match="the socket timed out"):
        await stages._blocking(run(), fail)


async def test_work_that_hangs_everywhere_lets_others_fail_fast_and_try_again(stages, monkeypatch):
    monkeypatch.setattr(stages._threads, "_limit", 1)
    release = threading.Event()
    with pytest.raises(DeadlineExceeded):
        await stages._blocking(run(0.05), lambda context: release.wait(20))
    with pytest.raises(RetryableError, match="stage postprocess has 1 calls that have not ended"):
        await stages._blocking(run(), lambda context: 1)
    release.set()


async def test_clips_of_many_lanes_are_encoded_at_a_time():
    stages = Stages(hooks=None, pool=SimpleNamespace(generate_lanes=8), settings=load_settings())
    together = threading.Barrier(6 * 8)
    work = [stages._blocking(run(), lambda context: together.wait(20), stage="encode") for _ in range(6 * 8)]
    assert sorted(await asyncio.gather(*work)) == list(range(6 * 8))


async def test_a_cancelled_task_tells_its_work(stages):
    started, cancelled = threading.Event(), threading.Event()

    def work(context):
        started.set()
        while True:
            try:
                context.check()
            except JobCancelled:
                cancelled.set()
                return
            time.sleep(0.01)

    task = asyncio.create_task(stages._blocking(run(), work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(cancelled.wait, 10)


async def test_a_cancelled_run_starts_nothing(stages):
    one = run()
    one.cancel()
    with pytest.raises(JobCancelled):
        await stages._blocking(one, lambda context: pytest.fail("started"))
