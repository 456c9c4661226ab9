"""A job that is interrupted goes on from its checkpoint: in another lane, another process, on another machine."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time

import pytest
from redis import Redis

from tests.end_to_end.conftest import Site, payload
from wan_host.checkpoint import step_of
from wan_host.queue.embedded import server_binary

EVERY = {"WAN_HOST_CHECKPOINT_EVERY": "2"}
SLOW = {"prompt": "pace:0.15", "num_inference_steps": 12}


def digest(site, report):
    return hashlib.sha256((site.data / "outputs" / report["assets"][0]["url"]).read_bytes()).hexdigest()


def wait_for_step(folder, job_id, step):
    deadline = time.monotonic() + 60
    while step_of(folder / "checkpoints" / f"{job_id}.safetensors") < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_lane(worker):
    (lane,) = worker.lane_pids()
    os.kill(lane, signal.SIGKILL)


def test_a_killed_lane_costs_the_steps_since_the_checkpoint_and_the_file_is_the_same(site):
    worker = site.start(**EVERY)
    site.push(payload("undisturbed", seed=3, num_inference_steps=12))
    expected = digest(site, site.receiver.wait_for("undisturbed", "completed"))
    site.push(payload("job-1", seed=3, **SLOW))
    wait_for_step(site.data, "job-1", 4)
    kill_lane(worker)
    report = site.receiver.wait_for("job-1", "completed")
    assert report["metadata"]["attempt"] == 2
    assert report["metadata"]["resumed_at_step"] >= 4
    assert digest(site, report) == expected
    assert not list((site.data / "checkpoints").iterdir())


def test_a_job_that_is_handed_back_goes_on_in_another_process(site):
    worker = site.start(WAN_HOST_STOP_GRACE="0.2", **EVERY)
    site.push(payload("job-1", seed=3, **SLOW))
    wait_for_step(site.data, "job-1", 4)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    site.start(**EVERY)
    assert site.receiver.wait_for("job-1", "completed")["metadata"]["resumed_at_step"] >= 4


@pytest.mark.long
def test_a_damaged_checkpoint_is_ignored_with_its_reason(site):
    worker = site.start(**EVERY)
    site.push(payload("job-1", seed=3, **SLOW))
    wait_for_step(site.data, "job-1", 4)
    kill_lane(worker)
    path = site.data / "checkpoints" / "job-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    report = site.receiver.wait_for("job-1", "completed")
    assert "resumed_at_step" not in report["metadata"]
    (ignored,) = [event for event in worker.events() if event["event"] == "checkpoint ignored"]
    assert "damaged" in ignored["reason"]


@pytest.fixture
def queue_url(tmp_path):
    """A queue server that belongs to none of the machines."""
    socket = tmp_path / "queue.sock"
    command = [server_binary(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not socket.exists():
            time.sleep(0.02)
        yield f"unix://{socket}"
        server.kill()


@pytest.mark.long
def test_another_machine_goes_on_from_the_copy_in_the_store(site, plugins, tmp_path, queue_url):
    store = tmp_path / "store"
    store.mkdir()
    there = {**EVERY, "WAN_HOST_CHECKPOINT_STORE": "true", "WAN_HOST_PUBLISHER": "store", "WAN_HOST_BUCKET": "store"}
    there |= {"WAN_HOST_TESTING_STORE": str(store), "WAN_HOST_QUEUE_URL": queue_url}
    worker = site.start(**there)
    copy = store / "user-1" / "job-1" / "checkpoint.safetensors"
    with Redis.from_url(queue_url) as producer:
        producer.rpush("wan_queue", payload("job-1", seed=3, prompt="pace:0.25", num_inference_steps=30))
    deadline = time.monotonic() + 30
    while step_of(copy) < 4:
        assert time.monotonic() < deadline, worker.log_tail()
        time.sleep(0.02)
    with Site(tmp_path / "elsewhere", plugins) as elsewhere:
        elsewhere.environment |= {"WAN_HOST_CALLBACK_URL": site.receiver.url}
        elsewhere.start(**there)
        worker.signal(signal.SIGKILL)
        report = site.receiver.wait_for("job-1", "completed", seconds=40)
        assert report["metadata"]["resumed_at_step"] >= 4
        deadline = time.monotonic() + 10
        while copy.read_bytes() != b"this job has ended\n":  # after the report's delivery has begun
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_store_that_reads_nothing_back_cannot_keep_checkpoints(site):
    site.environment |= {**EVERY, "WAN_HOST_CHECKPOINT_STORE": "true"}
    result = site.cli("run", "--once", check=False)
    assert result.returncode == 1
    assert "WAN_HOST_CHECKPOINT_STORE: true is not allowed with the publisher 'local'" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_real_model_whose_lane_is_killed_makes_the_same_file(site, solver):
    more = {"WAN_HOST_MODEL": "tiny-wan", "WAN_HOST_DISABLED_PLUGINS": "", "WAN_HOST_LEASE_SECONDS": "15", **EVERY}
    worker = site.start(**more)
    wanted = {"prompt": "a red circle moves to the right", "seed": 11, "num_inference_steps": 24, "sample_solver": solver}
    site.push(payload("undisturbed", **wanted))
    expected = digest(site, site.receiver.wait_for("undisturbed", "completed", seconds=100))
    site.push(payload("job-1", **wanted))
    wait_for_step(site.data, "job-1", 6)
    kill_lane(worker)
    report = site.receiver.wait_for("job-1", "completed", seconds=100)
    assert (report["metadata"]["attempt"], report["metadata"]["resumed_at_step"] >= 6) == (2, True)
    assert digest(site, report) == expected
