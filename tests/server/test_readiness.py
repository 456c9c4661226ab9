"""/health and /ready tell the truth: each fault makes /ready 503 with its reason within ten seconds, and 200 again afterwards."""

import contextlib
import json
import os
import signal
import time

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import Site, payload
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


@contextlib.contextmanager
def stopped(pids):
    """Let these processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


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
    try:
        with stopped(api.worker.lane_pids()):
            assert "has not answered" in wait_for(api, 503, "lane generate-cpu")[0]
        wait_for(api, 200)
    finally:  # other tests share the worker
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


def seen(worker, deadline, after=0.0):
    """Wait until the fleet's list has a worker, seen later than that, and return what it tells of it."""
    while True:
        with contextlib.suppress(LookupError, OSError):
            for row in worker.get("/workers")[1].get("workers", []):
                if row["seen"] > after:
                    return row
        assert time.monotonic() < deadline, worker.log_tail()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("fault", "reason", "lanes"),
    [
        (
            {"WAN_HOST_REQUIRED_PLUGINS": "rewriter", "REWRITER_BROKEN": "1"},
            "plugin rewriter (instant-model 0.1.0) is required but",
            "1",
        ),
        ({"WAN_HOST_MIN_FREE_BYTES": str(1 << 60)}, "disk: ", "0"),
    ],
)
def test_a_worker_that_lacks_something_from_the_start(tmp_path, plugins, fault, reason, lanes):
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
        first = seen(worker, deadline)
        assert seen(worker, deadline, after=first["seen"])["alive"]  # at its start anyway, so look again
        assert seen(worker, deadline)["about"]["lanes"] == lanes


def test_a_worker_that_starts_without_room_takes_no_job(tmp_path, plugins):
    with Site(tmp_path, plugins) as site:
        site.cli("submit", "-", text=payload("a"))
        environment = {**site.environment, "WAN_HOST_MIN_FREE_BYTES": str(1 << 60)}
        environment["WAN_HOST_DISABLED_PLUGINS"] += ",qwen_enhance,supabase"  # a plugin that is told of the start gives time
        worker = WorkerProcess(data_dir=site.data, environment=environment).start()
        site.workers.append(worker)
        seen(worker, time.monotonic() + 60)
        assert json.loads(site.cli("jobs", "show", "a").stdout)["status"] == "waiting"


@pytest.mark.long
def test_health_answers_while_the_worker_is_not_ready(serve):
    api = serve()
    with stopped(api.worker.lane_pids()):
        wait_for(api, 503)
        assert httpx.get(f"{api.client.base_url}/health").json()["status"] == "healthy"
