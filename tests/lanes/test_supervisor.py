"""What a caller of a lane can rely on when something breaks, and what the host sees of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import structlog
from lane_fakes import request, until

from wan_host import errors
from wan_host.lanes import channel
from wan_host.lanes.state import CallEnded, JobPreview, JobProgress, LaneEnded, LaneStarted
from wan_host.request import References

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc or PR_SET_PDEATHSIG")


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_loads_the_model_first_and_only_once(new_lane):
    lane = await new_lane()
    first = await lane.generate("good", request())
    assert first.model_load is not None
    assert "load" in first.stage_seconds
    assert lane.state.loaded == ("good",)
    second = await lane.generate("good", request())
    assert second.model_load is None


async def test_tells_steps_while_they_happen(new_lane):
    events = []
    lane = await new_lane(events=events)
    running = asyncio.create_task(lane.generate("slow", request()))
    await until(lambda: lane.state.step == 2)
    state = lane.state
    assert (state.status, state.job_id, state.model, state.stage, state.total) == ("busy", "job-1", "slow", "denoise", 4)
    assert state.silent_for < 1
    await running
    assert lane.state.status == "idle"
    progress = [event for event in events if isinstance(event, JobProgress)]
    assert [event.step for event in progress if event.stage == "denoise" and event.step] == [1, 2, 3, 4]
    assert {"load", "text_encode", "decode"} <= {event.stage for event in progress}
    ended = [(event.what, event.error_type) for event in events if isinstance(event, CallEnded)]
    assert ended == [("load", ""), ("generate", "")]
    assert isinstance(events[0], LaneStarted)


async def test_passes_previews_on(new_lane):
    events = []
    lane = await new_lane(events=events)
    await lane.generate("preview", request())
    (preview,) = [event for event in events if isinstance(event, JobPreview)]
    assert preview.image.shape == (8, 8, 3)


async def test_a_listener_that_raises_harms_nobody(new_lane):
    lane = await new_lane(started=False)
    lane._listener = lambda event: 1 / 0
    with structlog.testing.capture_logs() as logs:
        await lane.start()
        await lane.generate("good", request())
    assert "lane listener failed" in {entry["event"] for entry in logs}


@pytest.mark.parametrize(
    ("model", "kind", "reason"),
    [
        ("oom", errors.OutOfMemory, "out_of_memory"),
        ("memory-error", errors.OutOfMemory, "out_of_memory"),
        ("load-oom", errors.OutOfMemory, "out_of_memory"),
        ("device-fault", errors.GenerationFailed, "device_fault"),
    ],
)
async def test_a_fault_of_the_device_costs_the_process(new_lane, model, kind, reason):
    lane = await new_lane()
    pid = lane.state.pid
    with pytest.raises(kind):
        await lane.generate(model, request())
    await lane.generate("good", request())
    assert lane.state.pid != pid
    assert lane.state.restarts == {reason: 1}


async def test_a_crash_in_the_middle_costs_one_attempt(new_lane, tmp_path):
    events = []
    lane = await new_lane(events=events, hook_options={"stamp": str(tmp_path / "stamp")})
    await lane.load("good")
    with pytest.raises(errors.LaneCrashed, match=r"step 1 of 4 of job job-1, was killed by SIGKILL \(out of memory\?\)"):
        await lane.generate("crash-once", request())
    result = await lane.generate("crash-once", request())
    assert result.generation.clips
    assert lane.state.loaded == ("crash-once",), "what the dead child had loaded is gone"
    assert lane.state.restarts == {"crash": 1}
    assert [event.reason for event in events if isinstance(event, LaneEnded)] == ["crash"]


async def test_a_crash_brings_the_last_words(new_lane):
    lane = await new_lane()
    with pytest.raises(errors.LaneCrashed, match="ended with exit status 3; its last lines:\nabout to leave"):
        await lane.generate("exit", request())
    with pytest.raises(errors.LaneCrashed, match=r"(?s)was killed by SIGSEGV.*in _segfault"):
        await lane.generate("segfault", request())


async def test_an_idle_lane_that_dies_is_there_again(new_lane):
    lane = await new_lane()
    pid = lane.state.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: lane.state.status == "idle" and lane.state.pid != pid)
    await lane.generate("good", request())


async def test_a_hang_is_ended_and_says_where_it_hung(new_lane):
    lane = await new_lane(limits={"step": 0.4, "stage": 0.4})
    begun = time.monotonic()
    with pytest.raises(errors.LaneHung, match=r"(?s)no progress for \d s in stage denoise, step 1 of 4 of job job-1.*in _hang"):
        await lane.generate("hang", request())
    assert time.monotonic() - begun < 3
    await lane.generate("good", request())
    assert lane.state.restarts == {"hung": 1}


async def test_a_lane_that_is_stopped_by_the_system_is_found_at_the_next_call(new_lane):
    lane = await new_lane(limits={"accept": 0.3})
    os.kill(lane.state.pid, signal.SIGSTOP)
    with pytest.raises(errors.LaneHung, match="before it began"):
        await lane.generate("good", request())
    await lane.generate("good", request())


async def test_a_silent_load_is_ended(new_lane):
    lane = await new_lane(limits={"load_silence": 0.3})
    with pytest.raises(errors.LaneHung, match="in stage load"):
        await lane.load("load-silent")


async def test_a_job_that_ignores_its_cancel_is_killed(new_lane):
    lane = await new_lane(limits={"cancel_grace": 0.3})
    running = asyncio.create_task(lane.generate("deaf", request()))
    await until(lambda: lane.state.step == 2)
    lane.cancel("job-1")
    begun = time.monotonic()
    with pytest.raises(errors.JobCancelled, match=r"did not end within 0\.3 s and was killed"):
        await running
    assert time.monotonic() - begun < 2
    assert (await lane.generate("good", request())).generation.clips
    assert lane.state.restarts == {"cancel": 1}


async def test_a_job_that_ignores_its_deadline_is_killed(new_lane):
    lane = await new_lane(limits={"cancel_grace": 0.3})
    await lane.load("deaf")
    with pytest.raises(errors.DeadlineExceeded, match="was killed"):
        await lane.generate("deaf", request(), deadline=time.monotonic() + 0.3)
    assert lane.state.restarts in ({}, {"deadline": 1})
    await lane.generate("good", request())
    assert lane.state.restarts == {"deadline": 1}


async def test_a_killed_lane_takes_its_own_children_along(new_lane):
    lane = await new_lane(limits={"stop": 0.3})
    running = asyncio.create_task(lane.generate("grandchild", request()))
    await until(lambda: any(line.startswith("grandchild") for line in lane._keeper.child.tail))
    pid = int(lane._keeper.child.tail[-1].split()[1])
    running.cancel()
    await lane.stop()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def test_stop_lets_nobody_wait(new_lane):
    lane = await new_lane()
    jobs = [asyncio.create_task(lane.generate("slow", request(f"job-{i}", num_inference_steps=100))) for i in range(3)]
    await until(lambda: lane.state.step == 1)
    await lane.stop()
    for result in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(result, errors.LaneCrashed)
        assert "was stopped" in str(result)
    assert lane.state.status == "stopped"
    await lane.stop()
    with pytest.raises(errors.LaneCrashed, match="was stopped"):
        await lane.generate("good", request())


async def test_stop_kills_what_does_not_listen(new_lane):
    lane = await new_lane(limits={"stop": 0.3})
    running = asyncio.create_task(lane.generate("hang", request()))
    await until(lambda: lane.state.step == 1)
    begun = time.monotonic()
    await lane.stop()
    assert time.monotonic() - begun < 2
    with pytest.raises(errors.LaneCrashed):
        await running


async def test_a_clip_of_200_megabytes_is_mapped_not_copied(new_lane):
    lane = await new_lane()
    before = psutil.Process().memory_full_info().uss
    result = await lane.generate("large", request(frames=67, width=1024, height=1024))
    frames = result.generation.clips[0].frames
    assert frames.nbytes > 200e6
    assert psutil.Process().memory_full_info().uss - before < 20e6
    assert int(frames[::8, ::64, ::64].min()) == int(frames[-1].max()) == 5


@LINUX
async def test_nothing_is_left_behind_by_thirty_jobs_and_some_crashes(new_lane):
    def held():
        return open_descriptors(), len(psutil.Process().children()), len(list(Path("/dev/shm").iterdir()))

    lane = await new_lane()
    await lane.generate("good", request())
    before = held()
    for i in range(30):
        await lane.generate("good", request(f"job-{i}"))
        if i % 10 == 0:
            with pytest.raises(errors.LaneCrashed):
                await lane.generate("sigkill", request())
    await lane.generate("good", request())
    assert held() == before
    await lane.stop()
    files, children, shared = held()
    assert (children, shared) == (before[1] - 1, before[2])
    assert files < before[0]


@LINUX
async def test_descriptors_are_kept_until_the_answer_where_the_system_needs_it(new_lane, monkeypatch):
    monkeypatch.setattr(channel, "KEEP_SENT", True)
    lane = await new_lane()
    image = np.zeros((256, 512, 3), np.uint8)
    job = request(width=512, height=256, frames=1, references=References(image=image))
    await lane.generate("reference", job)
    before = open_descriptors()
    for _ in range(5):
        await lane.generate("reference", job)
    assert open_descriptors() <= before


HOST = """
import asyncio, sys
sys.path.insert(0, {fakes!r})
from lane_fakes import request
from wan_host.lanes.supervisor import Lane

async def main():
    lane = Lane(name="orphan", device="cpu", kind="generate", hooks="lane_fakes:hooks")
    await lane.start()
    assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
    print(lane.state.pid, flush=True)
    await lane.generate({model!r}, request())

asyncio.run(main())
"""


@pytest.mark.parametrize("model", ["hang", pytest.param("holds-lock", marks=LINUX)])
def test_a_lane_ends_by_itself_when_its_host_is_killed(model):
    script = HOST.format(fakes=str(Path(__file__).parent), model=model)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
        while not (line := host.stdout.readline().strip()).isdigit():
            assert line, "the host ended early"
        child = psutil.Process(int(line))
        time.sleep(0.3)
        host.kill()
        host.wait()
        _, alive = psutil.wait_procs([child], timeout=1.0)
        assert not alive or alive[0].status() == psutil.STATUS_ZOMBIE


def test_the_host_half_imports_no_torch():
    code = "import sys, wan_host.lanes.supervisor; sys.exit(bool({'torch', 'diffusers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
