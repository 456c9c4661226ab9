"""/health and /ready tell the truth: each fault makes /ready 503 with its reason within ten seconds, and 200 again afterwards."""

import contextlib
import os
import signal
import time

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import Site
from tests.server.conftest import OTHERS_OFF, job
from wan_host.testing.process import WorkerProcess

SECONDS = 10


def wait_for(api, status, reason=""):
    """Wait until /ready answers so, and return its problems."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer = api.client.get("/ready", timeout=3)
        problems = answer.json()["problems"]
        if answer.status_code == status and any(reason in problem for problem in problems or [""]):
            assert answer.json()["ready"] == (status == 200)
            assert api.client.get("/health").json()["ready"] == (status == 200)
            return problems
        assert time.monotonic() < deadline, problems
        time.sleep(0.1)


def test_health_has_the_seeds_fields(api):
    body = api.client.get("/health").json()
    assert {name: body[name] for name in ("status", "wan_model_loaded", "qwen_model_loaded", "device")} == {
        "status": "healthy",
        "wan_model_loaded": False,
        "qwen_model_loaded": False,
        "device": "cpu",
    }
    assert {lane["name"] for lane in body["lanes"]} == {"generate-cpu", "enhance"}


@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_lane_whose_process_is_stuck(api, busy):
    if busy:
        api.submit(job("busy", "pace:0.2", num_inference_steps=100))
        api.wait_until_step("busy")
    for pid in api.worker.lane_pids():
        os.kill(pid, signal.SIGSTOP)
    assert "has not answered" in wait_for(api, 503, "lane generate-cpu")[0]
    for pid in api.worker.lane_pids():
        os.kill(pid, signal.SIGCONT)
    wait_for(api, 200)
    if busy:
        api.client.delete("/jobs/busy")


def test_a_lane_whose_steps_have_stopped(serve):
    api = serve()
    api.submit(job("known"))
    api.wait_for("known", "completed")
    api.submit(job("a", "hang"))
    assert "no step of job a" in wait_for(api, 503, "lane generate-cpu")[0]


@pytest.mark.long
def test_a_lane_that_is_being_started_again(serve):
    api = serve()
    api.submit(job("a", "crash-always pace:0.2"))
    wait_for(api, 503, "lane generate-cpu: restarting")
    wait_for(api, 200)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_queue_server_that_is_gone_or_stuck(serve, number):
    api = serve()
    server = psutil.Process(int((api.site.data / "queue" / "server.pid").read_text()))
    if number is signal.SIGKILL:  # the worker starts the embedded server anew, unless something is in the way
        folder = api.site.data / "queue" / "appendonlydir"
        folder.rename(api.site.data / "queue" / "away")
        folder.write_text("in the way")
    server.send_signal(number)
    wait_for(api, 503, "queue: ")
    if number is signal.SIGSTOP:
        server.send_signal(signal.SIGCONT)
    else:
        folder.unlink()
    wait_for(api, 200)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            {"WAN_HOST_REQUIRED_PLUGINS": "rewriter", "REWRITER_BROKEN": "1"},
            "plugin rewriter (instant-model 0.1.0) is required but",
        ),
        ({"WAN_HOST_MIN_FREE_BYTES": str(1 << 60)}, "disk: "),
    ],
)
def test_a_worker_that_lacks_something_from_the_start(tmp_path, plugins, fault, reason):
    with Site(tmp_path, plugins) as site:
        worker = WorkerProcess(data_dir=site.data, environment={**site.environment, **OTHERS_OFF, **fault}).start()
        site.workers.append(worker)
        deadline = time.monotonic() + 60  # its start is not what is measured here
        found = []
        while not any(problem.startswith(reason) for problem in found):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
            with contextlib.suppress(LookupError, OSError):
                status, body = worker.get("/ready")
                assert status == 503
                found = body["problems"]
        assert worker.get("/health")[1]["ready"] is False
        while not (seen := worker.get("/workers")[1].get("workers")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert seen[0]["alive"]


@pytest.mark.long
def test_health_answers_while_the_worker_is_not_ready(serve):
    api = serve()
    for pid in api.worker.lane_pids():
        os.kill(pid, signal.SIGSTOP)
    wait_for(api, 503)
    assert httpx.get(f"{api.client.base_url}/health").json()["status"] == "healthy"
    for pid in api.worker.lane_pids():
        os.kill(pid, signal.SIGCONT)
