"""A worker in its own process, an embedded queue, a receiver: what a producer and a receiver see."""

import json
import os
import shutil
import signal
import subprocess
import time
from datetime import datetime

import psutil
import pytest

from tests.end_to_end.conftest import Site, payload
from wan_host.queue.embedded import server_binary
from wan_host.testing.process import WorkerProcess


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory, plugins):
    with Site(tmp_path_factory.mktemp("shared"), plugins) as there:
        there.start(WAN_HOST_MAX_ATTEMPTS="2", WAN_HOST_PREFETCH_SECONDS="0")  # one job at a time, the others wait
        yield there


@pytest.fixture
def running(shared_site):
    """A site with a worker, for tests that leave both as they were."""
    yield shared_site
    shared_site.receiver.answer = lambda _: 200
    (worker,) = shared_site.workers
    deadline = time.monotonic() + 30
    while left := [job for job in worker.get("/jobs")[1]["jobs"] if job["status"] in {"waiting", "claimed", "running"}]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def finished_by_the_dead(site, **there):
    """Leave a job whose worker was killed when it had made the file and could not publish it; return how workers publish here."""
    (site.folder / "down").touch()
    there = {"WAN_HOST_PUBLISHER": "store", "WAN_HOST_TESTING_STORE": str(site.folder), **there}
    worker = site.start(**there)
    site.push(payload("job-1"))
    wait_for_spooled(site, worker)
    worker.signal(signal.SIGKILL)
    worker.wait()
    (site.folder / "down").unlink()
    return there


def wait_for_spooled(site, worker):
    deadline = time.monotonic() + 20
    while not list((site.data / "spool").glob("*/*/manifest.json")):
        assert time.monotonic() < deadline, worker.log_tail()
        time.sleep(0.05)


def test_killing_the_lane_in_the_middle_ends_in_a_second_attempt_that_succeeds(running):
    (worker,) = running.workers
    running.push(payload("killed", prompt="pace:0.2", num_inference_steps=10))
    running.receiver.wait_for("killed", "processing")
    time.sleep(0.6)
    (lane,) = worker.lane_pids()
    os.kill(lane, signal.SIGKILL)
    report = running.receiver.wait_for("killed", "completed")
    assert report["metadata"]["attempt"] == 2
    assert worker.lane_pids() != [lane]


def test_every_attempt_makes_the_same_file_because_the_seed_is_drawn_once(running):
    running.push(payload("drawn", prompt="crash:2"))
    report = running.receiver.wait_for("drawn", "completed")
    first, last = running.receiver.reports("drawn")[0], report
    assert last["metadata"]["attempt"] == 2
    assert first["metadata"]["seed"] == last["metadata"]["seed"] == last["assets"][0]["metadata"]["seed"]


def test_a_job_that_always_kills_its_lane_fails_after_its_attempts(running):
    running.push(payload("lethal", prompt="crash-always"))
    report = running.receiver.wait_for("lethal", "failed")
    assert report["metadata"]["error_type"] == "lane_crashed"
    assert report["metadata"]["attempt"] == 2
    assert "lane_crashed" in running.cli("jobs", "list", "--dead").stdout
    running.push(payload("good"))
    running.receiver.wait_for("good", "completed")


def test_a_running_job_can_be_cancelled_from_the_command_line(running):
    running.push(payload("cancelled", prompt="pace:0.2", num_inference_steps=100))
    running.receiver.wait_for("cancelled", "processing")
    running.cli("jobs", "cancel", "cancelled")
    report = running.receiver.wait_for("cancelled", "failed", seconds=20)
    assert report["metadata"]["error_type"] == "cancelled"
    assert json.loads(running.cli("jobs", "show", "cancelled").stdout)["status"] == "cancelled"


def test_a_waiting_job_can_be_cancelled(running):
    running.push(payload("first", prompt="pace:0.2", num_inference_steps=40), payload("second"))
    running.receiver.wait_for("first", "processing")
    assert json.loads(running.cli("jobs", "show", "second").stdout)["status"] == "waiting"
    running.cli("jobs", "cancel", "second")
    assert running.receiver.wait_for("second", "failed")["metadata"]["error_type"] == "cancelled"
    running.receiver.wait_for("first", "completed")


def test_sigterm_hands_the_running_job_back_without_losing_an_attempt(site):
    worker = site.start(WAN_HOST_STOP_GRACE="0.5")
    site.push(payload("job-1", prompt="pace:0.2", num_inference_steps=25))
    site.receiver.wait_for("job-1", "processing")
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    site.start()
    assert site.receiver.wait_for("job-1", "completed")["metadata"]["attempt"] == 2  # its number; it is not counted


def test_a_job_of_a_worker_that_was_killed_starts_elsewhere_within_the_lease(site):
    workers = {name: site.start(WAN_HOST_WORKER_ID=name) for name in ("one", "two")}
    site.push(payload("job-1", prompt="pace:0.2", num_inference_steps=15))
    doomed = workers[site.receiver.wait_for("job-1", "processing")["worker_id"]]
    lanes = [psutil.Process(pid) for pid in doomed.lane_pids()]
    doomed.signal(signal.SIGKILL)
    killed = time.monotonic()
    report = site.receiver.wait_for("job-1", "completed", seconds=40)
    second_start = next(item for item in site.receiver.reports("job-1") if item["metadata"]["attempt"] == 2)
    assert report["metadata"]["attempt"] == 2
    assert second_start["status"] == "processing"
    assert time.monotonic() - killed < 3 + 15 * 0.2 + 5
    assert not psutil.wait_procs(lanes, timeout=2)[1]


def test_a_job_that_was_finished_before_a_crash_is_published_not_generated_again(site):
    there = finished_by_the_dead(site, WAN_HOST_LEASE_SECONDS="20")
    site.start(**there)
    report = site.receiver.wait_for("job-1", "completed")
    assert report["metadata"]["attempt"] == 1
    assert len([item for item in site.receiver.reports("job-1") if item["status"] == "processing"]) == 1
    assert report["assets"][0]["url"] == "store/user-1/job-1/0.mp4"
    assert (site.folder / "user-1/job-1/0.mp4").is_file()
    assert not list((site.data / "spool").glob("*/*/manifest.json"))


def test_finished_work_is_delivered_although_the_queue_server_came_back_empty(site):
    there = finished_by_the_dead(site)
    server = psutil.Process(int((site.data / "queue" / "server.pid").read_text()))
    server.kill()
    server.wait()
    shutil.rmtree(site.data / "queue" / "appendonlydir")
    site.start(**there)
    assert site.receiver.wait_for("job-1", "completed")["assets"][0]["url"] == "store/user-1/job-1/0.mp4"


def test_a_store_that_is_down_for_a_while_costs_nothing_but_time(site):
    (site.folder / "down").touch()
    site.start(WAN_HOST_PUBLISHER="store", WAN_HOST_TESTING_STORE=str(site.folder))
    site.push(payload("job-1"))
    site.receiver.wait_for("job-1", "processing")
    time.sleep(4)  # longer than a lease
    (site.folder / "down").unlink()
    assert site.receiver.wait_for("job-1", "completed")["metadata"]["attempt"] == 1


def test_work_that_cannot_be_published_at_all_fails_with_the_reason(site):

    (site.data / "outputs").write_text("in the way")
    site.start()
    site.push(payload("job-1"))
    report = site.receiver.wait_for("job-1", "failed")
    assert report["metadata"]["error_type"] == "publish_refused"
    assert "Not a directory" in report["error_message"]


def test_a_report_waits_for_a_receiver_that_is_down(running):
    failures = iter([503, None, 429])
    running.receiver.answer = lambda request: 200 if request.report["status"] == "processing" else next(failures, 200)
    running.push(payload("patient"))
    report = running.receiver.wait_for("patient", "completed", seconds=30)
    assert next(failures, "all") == "all"
    delivered = [item for item in running.receiver.received if item.report["job_id"] == "patient"]
    keys = {item.headers["idempotency-key"] for item in delivered if item.report["status"] == "completed"}
    assert keys == {f"patient:{report['metadata']['attempt']}:completed"}


def test_a_refused_report_is_kept_and_can_be_sent_again(running):
    running.receiver.answer = lambda request: 200 if request.report["status"] == "processing" else 404
    running.push(payload("unwanted"))
    deadline = time.monotonic() + 20
    while json.loads(running.cli("jobs", "show", "unwanted").stdout)["status"] != "report_refused":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.receiver.answer = lambda _: 200
    running.cli("jobs", "retry", "unwanted")
    running.receiver.wait_for("unwanted", "completed")


def test_a_required_plugin_that_is_missing_makes_the_worker_unready_but_alive(site):
    worker = WorkerProcess(data_dir=site.data, environment={**site.environment, "WAN_HOST_REQUIRED_PLUGINS": "absent"}).start()
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                status, body = worker.get("/ready")
                if body["problems"] == ["plugin absent is required (WAN_HOST_REQUIRED_PLUGINS) but not installed"]:
                    break
            except (LookupError, OSError):
                pass
            assert time.monotonic() < deadline, worker.log_tail()
            time.sleep(0.1)
        assert status == 503
        assert worker.get("/health")[0] == 200
    finally:
        worker.__exit__(None, None, None)


def test_an_idle_worker_ends_with_a_status_of_its_own(site):
    worker = site.start(WAN_HOST_IDLE_SECONDS="1.5")
    site.push(payload("job-1", prompt="pace:0.5"))  # work longer than the limit does not count
    site.receiver.wait_for("job-1", "completed")
    assert worker.wait(20) == 3


def test_the_idle_time_begins_when_a_long_job_was_cancelled(site):
    worker = site.start(WAN_HOST_IDLE_SECONDS="1.5", WAN_HOST_PREFETCH_SECONDS="0")  # it does not poll while the job runs
    site.push(payload("job-1", prompt="pace:0.2", num_inference_steps=100))
    site.receiver.wait_for("job-1", "processing")
    time.sleep(2)
    site.cli("jobs", "cancel", "job-1")
    assert worker.wait(20) == 3
    at = {event["event"]: datetime.fromisoformat(event["timestamp"]).timestamp() for event in worker.events()}
    assert at["idle for too long, the worker ends"] - at["job ended without a result"] >= 1.4


def test_a_second_interrupt_ends_the_worker_at_once(site):
    worker = site.start()
    site.push(payload("job-1", prompt="pace:0.2", num_inference_steps=100))
    site.receiver.wait_for("job-1", "processing")
    worker.signal(signal.SIGINT)
    time.sleep(0.5)
    children = [psutil.Process(pid) for pid in worker.lane_pids()]
    children.append(psutil.Process(int((site.data / "queue" / "server.pid").read_text())))
    worker.signal(signal.SIGINT)
    assert worker.wait(3) == 130
    assert not psutil.wait_procs(children, timeout=3)[1]


def test_once_drains_the_queue_and_leaves_no_process(site):
    for index in range(5):
        site.cli("submit", "-", text=payload(f"job-{index}"))
    worker = site.start("--once")
    assert worker.wait(60) == 0, worker.log_tail()
    for index in range(5):
        site.receiver.wait_for(f"job-{index}", "completed", seconds=1)
    leftovers = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(site.folder) in " ".join(process.info["cmdline"] or [])
    ]
    assert not leftovers


def test_another_process_of_the_same_data_folder_delivers_what_a_dead_one_had_finished(site):
    (site.folder / "down").touch()
    there = {"WAN_HOST_LEASE_SECONDS": "9", "WAN_HOST_PUBLISHER": "store", "WAN_HOST_TESTING_STORE": str(site.folder)}
    doomed = site.start(**there)
    site.push(payload("job-1"))
    site.receiver.wait_for("job-1", "processing")
    wait_for_spooled(site, doomed)
    site.start(**there)
    doomed.signal(signal.SIGKILL)
    doomed.wait()
    (site.folder / "down").unlink()
    assert site.receiver.wait_for("job-1", "completed")["metadata"]["attempt"] == 1


def test_a_worker_waits_for_a_queue_server_that_is_not_there_yet(site, tmp_path):
    socket = tmp_path / "late.sock"
    worker = WorkerProcess(data_dir=site.data, environment={**site.environment, "WAN_HOST_QUEUE_URL": f"unix://{socket}"}).start()
    site.workers.append(worker)
    deadline = time.monotonic() + 30
    while True:
        try:
            status, body = worker.get("/ready")
            break
        except (LookupError, OSError):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert status == 503
    assert any("queue" in problem for problem in body["problems"])
    server = subprocess.Popen(
        [server_binary(), "--port", "0", "--unixsocket", str(socket), "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        worker.wait_ready()
    finally:
        server.kill()
        server.wait()


def test_every_job_type_can_have_a_deadline_of_its_own(site):
    site.start(WAN_HOST_JOB_DEADLINES='{"video_fast": 1.0}')
    site.push(payload("late", prompt="pace:0.2", num_inference_steps=100))
    assert site.receiver.wait_for("late", "failed", seconds=20)["metadata"]["error_type"] == "deadline_exceeded"
    high = json.loads(payload("in-time", prompt="pace:0.2", num_inference_steps=8)) | {"type": "video_high"}
    site.push(json.dumps(high))
    site.receiver.wait_for("in-time", "completed")
    site.environment["WAN_HOST_JOB_DEADLINES"] = '{"video_quick": 1.0}'
    refused = site.cli("run", check=False)
    assert refused.returncode == 1
    assert "WAN_HOST_JOB_DEADLINES: no model has the job type 'video_quick'; there are: image7b_fast_enhanced" in refused.stderr


def test_a_worker_that_is_drained_ends_its_job_in_its_own_time_and_takes_no_other(site):
    worker = site.start(WAN_HOST_STOP_GRACE="0.2")
    site.push(payload("first", prompt="pace:0.2", num_inference_steps=10))
    site.receiver.wait_for("first", "processing")
    site.push(payload("second"))
    worker.signal(signal.SIGUSR1)
    assert worker.wait(30) == 0
    assert site.receiver.wait_for("first", "completed", seconds=1)["metadata"]["attempt"] == 1
    assert not site.receiver.reports("second")


def test_run_with_drain_delivers_what_a_dead_worker_had_finished_and_takes_no_job(site):
    there = finished_by_the_dead(site, WAN_HOST_LEASE_SECONDS="20")
    site.cli("submit", "-", text=payload("job-2"))
    site.environment |= there
    assert site.cli("run", "--drain").returncode == 0
    site.receiver.wait_for("job-1", "completed", seconds=1)
    assert json.loads(site.cli("jobs", "show", "job-2").stdout)["status"] == "waiting"


def test_an_entry_that_is_too_large_fails_with_what_to_do_instead(site):
    site.start(WAN_HOST_MAX_ENTRY_BYTES="2000")
    site.push(payload("job-1", prompt="a" * 3000))
    report = site.receiver.wait_for("job-1", "failed")
    assert (
        report["error_message"] == "payload: the entry is larger than WAN_HOST_MAX_ENTRY_BYTES; send images as URLs, not as data"
    )
