"""A pod from its start script to its end: a real worker, a volume, and RunPod's API as far as a pod uses it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis, RedisError

from tests.end_to_end.conftest import payload
from wan_host.queue import EmbeddedServer
from wan_host.testing.server import Answer, scripted_server

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "runpod" / "start.sh"


@pytest.fixture
def pod(site, tmp_path):
    """The variables of a pod whose volume is the site's folder; its spool is where the site looks for the queue."""
    volume = tmp_path / "volume"
    volume.mkdir()
    site.data = volume / "pods" / "pod7"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"PATH": programs, "VOLUME": str(volume), "RUNPOD_POD_ID": "pod7", "RUNPOD_API_KEY": "key", "ON_IDLE": "remove"}
    return {**os.environ, **site.environment, **given, "WAN_HOST_PORT": "0", "WAN_HOST_MIN_FREE_BYTES": "0"}


def test_a_pod_does_its_job_and_ends_itself_when_there_is_nothing_more(site, pod):
    with scripted_server(lambda _: Answer(204)) as runpod:
        pod |= {"WAN_HOST_IDLE_SECONDS": "3", "RUNPOD_API": runpod.url}
        process = subprocess.Popen(["bash", SCRIPT], env=pod, start_new_session=True)
        try:
            wait_for_queue(site)
            site.push(payload("on-a-pod"))
            report = site.receiver.wait_for("on-a-pod", "completed")
            assert process.wait(60) == 3
        finally:
            end(process)
        assert [(asked.method, asked.path) for asked in runpod.asked] == [("DELETE", "/pods/pod7")]
    assert report["worker_id"] == "pod7"
    assert (site.data / "outputs" / report["assets"][0]["url"]).is_file()


def test_a_pod_that_is_stopped_hands_its_job_back_and_is_not_removed(site, pod):
    with scripted_server(lambda _: Answer(204)) as runpod:
        pod |= {"WAN_HOST_STOP_GRACE": "0.5", "RUNPOD_API": runpod.url}
        process = subprocess.Popen(["bash", SCRIPT], env=pod, start_new_session=True)
        try:
            wait_for_queue(site)
            site.push(payload("long", prompt="pace:5"))
            site.receiver.wait_for("long", "processing")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            end(process)
        assert runpod.asked == []


def end(process):
    """Leave nothing behind, whatever went wrong."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_queue(site, seconds=30):
    """Wait until the pod's embedded queue takes a job."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with Redis.from_url(EmbeddedServer(site.data).url) as client:
                client.ping()
                return
        except (OSError, RedisError):
            time.sleep(0.1)
    raise AssertionError("the pod's queue did not start")
