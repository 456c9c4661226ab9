"""A worker in its own process, an embedded queue, a receiver: what a producer and a receiver see."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import payload
from wan_host.encoding import probe


def outputs(tmp_path) -> Path:
    return tmp_path / "data" / "outputs" / "workspace-temp"


def test_a_pushed_job_is_reported_twice_and_its_file_is_what_was_asked_for(start_worker, push, receiver, tmp_path):
    start_worker()
    push(payload("job-1", frames=7, fps=12))
    report = receiver.wait_for("job-1", "completed")
    assert [item["status"] for item in receiver.reports("job-1")] == ["processing", "completed"]
    sequences = [item["sequence"] for item in receiver.reports("job-1")]
    assert sequences == sorted(set(sequences))
    asset = report["assets"][0]
    assert asset["url"] == "workspace-temp/user-1/job-1/0.mp4"
    assert asset["thumbnail_url"] == "workspace-temp/user-1/job-1/0.thumb.webp"
    measured = probe(outputs(tmp_path) / "user-1/job-1/0.mp4")
    assert (measured.width, measured.height, measured.frames, measured.fps) == (128, 128, 7, 12)
    assert asset["metadata"]["frames"] == 7
    assert asset["metadata"]["file_size_bytes"] == (outputs(tmp_path) / "user-1/job-1/0.mp4").stat().st_size
    assert (outputs(tmp_path) / "user-1/job-1/0.thumb.webp").is_file()
    assert report["metadata"]["attempt"] == 1


@pytest.mark.parametrize("wrap", [lambda job: json.dumps([job]), lambda job: json.dumps([json.loads(job)]), json.dumps])
def test_entries_as_the_rest_api_leaves_them_are_jobs_too(start_worker, push, receiver, wrap):
    start_worker()
    push(wrap(payload("job-1", frames=1)))
    assert receiver.wait_for("job-1", "completed")["assets"][0]["metadata"]["frames"] == 1


def test_fields_that_real_producers_send_are_ignored(start_worker, push, receiver):
    start_worker()
    job = json.loads(payload("job-1", compel_enabled=True, nsfw_optimization=True, quality="fast", format="mp4"))
    job |= {"job_id": "other", "job_type": "wan_video_fast", "type": "wan_video_fast", "quality": "fast", "bucket": "x"}
    job["metadata"] |= {"reference_mode": "modify", "session": {"deep": [1, None]}}
    push(json.dumps(job))
    assert receiver.wait_for("job-1", "completed")["metadata"]["job_type"] == "video_fast"


def bad(change):
    job = json.loads(payload("bad"))
    change(job)
    return json.dumps(job)


@pytest.mark.parametrize(
    ("entry", "error_type", "words"),
    [
        (bad(lambda job: job.update(type="sdxl_fast")), "invalid_job", "sdxl_fast"),
        (bad(lambda job: job.update(user_id="../../etc")), "invalid_job", "user_id"),
        (bad(lambda job: job.update(prompt=3)), "invalid_job", "prompt"),
        (bad(lambda job: job.update(prompt="x" * 5000)), "invalid_job", "4000"),
        (bad(lambda job: job.update(prompt="x" * 10_000_000)), "invalid_job", "larger"),
        (bad(lambda job: job["config"].update(width=100)), "invalid_job", "config.width"),
        (bad(lambda job: job["config"].update(frames=84)), "invalid_job", "config.frames"),
        (bad(lambda job: job["config"].update(model="no-such")), "unknown_model", "no-such"),
        (bad(lambda job: job["config"].update(reference_mode="start")), "invalid_job", "first_frame"),
        (bad(lambda job: job.update(prompt="refuse")), "unsupported", "refusal"),
        (bad(lambda job: job.update(expires_at=1)), "deadline_exceeded", "expired"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_wrong_payload_is_reported_and_the_worker_goes_on(start_worker, push, receiver, entry, error_type, words):
    worker = start_worker()
    push(entry)
    report = receiver.wait_for("bad", "failed")
    assert report["metadata"]["error_type"] == error_type
    assert words in report["error_message"]
    assert len(report["error_message"]) < 500
    push(payload("good"))
    receiver.wait_for("good", "completed")
    assert worker.get("/ready")[0] == 200


@pytest.mark.parametrize(
    "entry", ["no json", b"\xff\xfe", "[]", "{}", '{"id": 5}', '{"id": "../x", "user_id": "u"}', '"x"', "null"]
)
def test_an_entry_without_a_usable_id_is_a_dead_letter(start_worker, push, receiver, entry, run_cli):
    start_worker()
    push(entry)
    push(payload("good"))
    receiver.wait_for("good", "completed")
    listed = run_cli("jobs", "list", "--dead").stdout
    assert len([line for line in listed.splitlines() if line.startswith("│")]) == 1, listed


def test_killing_the_lane_in_the_middle_ends_in_a_second_attempt_that_succeeds(start_worker, push, receiver):
    worker = start_worker()
    push(payload("job-1", prompt="pace:0.2", num_inference_steps=10))
    receiver.wait_for("job-1", "processing")
    time.sleep(0.6)
    (lane,) = worker.lane_pids()
    os.kill(lane, signal.SIGKILL)
    report = receiver.wait_for("job-1", "completed")
    assert report["metadata"]["attempt"] == 2
    assert worker.lane_pids() != [lane]


def test_every_attempt_makes_the_same_file_because_the_seed_is_drawn_once(start_worker, push, receiver):
    start_worker()
    push(payload("job-1", prompt="crash:2"))
    report = receiver.wait_for("job-1", "completed")
    first, last = receiver.reports("job-1")[0], report
    assert last["metadata"]["attempt"] == 2
    assert first["metadata"]["seed"] == last["metadata"]["seed"] == last["assets"][0]["metadata"]["seed"]


def test_a_job_that_always_kills_its_lane_fails_after_its_attempts(start_worker, push, receiver, run_cli):
    start_worker(WAN_HOST_MAX_ATTEMPTS="2")
    push(payload("job-1", prompt="crash-always"))
    report = receiver.wait_for("job-1", "failed")
    assert report["metadata"]["error_type"] == "lane_crashed"
    assert report["metadata"]["attempt"] == 2
    assert "lane_crashed" in run_cli("jobs", "list", "--dead").stdout
    push(payload("good"))
    receiver.wait_for("good", "completed")


def test_a_running_job_can_be_cancelled_from_the_command_line(start_worker, push, receiver, run_cli):
    start_worker()
    push(payload("job-1", prompt="pace:0.2", num_inference_steps=100))
    receiver.wait_for("job-1", "processing")
    run_cli("jobs", "cancel", "job-1")
    report = receiver.wait_for("job-1", "failed", seconds=20)
    assert report["metadata"]["error_type"] == "cancelled"
    assert json.loads(run_cli("jobs", "show", "job-1").stdout)["status"] == "cancelled"


def test_a_waiting_job_can_be_cancelled(start_worker, push, receiver, run_cli):
    start_worker()
    push(payload("first", prompt="pace:0.2", num_inference_steps=40))
    push(payload("second"))
    receiver.wait_for("first", "processing")
    run_cli("jobs", "cancel", "second")
    assert receiver.wait_for("second", "failed")["metadata"]["error_type"] == "cancelled"
    receiver.wait_for("first", "completed")


def test_sigterm_hands_the_running_job_back_without_losing_an_attempt(start_worker, push, receiver):
    worker = start_worker(WAN_HOST_STOP_GRACE="0.5")
    push(payload("job-1", prompt="pace:0.2", num_inference_steps=25))
    receiver.wait_for("job-1", "processing")
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    start_worker()
    assert receiver.wait_for("job-1", "completed")["metadata"]["attempt"] == 2  # its number; it is not counted


def test_a_job_of_a_worker_that_was_killed_starts_elsewhere_within_the_lease(start_worker, push, receiver):
    doomed = start_worker()
    push(payload("job-1", prompt="pace:0.2", num_inference_steps=15))
    receiver.wait_for("job-1", "processing")
    start_worker()
    lanes = [psutil.Process(pid) for pid in doomed.lane_pids()]
    doomed.signal(signal.SIGKILL)
    killed = time.monotonic()
    report = receiver.wait_for("job-1", "completed", seconds=30)
    second_start = next(item for item in receiver.reports("job-1") if item["metadata"]["attempt"] == 2)
    assert report["metadata"]["attempt"] == 2
    assert second_start["status"] == "processing"
    assert time.monotonic() - killed < 3 + 15 * 0.2 + 5
    assert not psutil.wait_procs(lanes, timeout=2)[1]


def test_a_job_that_was_finished_before_a_crash_is_published_not_generated_again(start_worker, push, receiver, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "down").touch()
    there = {"WAN_HOST_LEASE_SECONDS": "20", "WAN_HOST_PUBLISHER": "store", "WAN_HOST_TESTING_STORE": str(store)}
    worker = start_worker(**there)
    push(payload("job-1"))
    deadline = time.monotonic() + 20
    while not list((tmp_path / "data" / "spool").glob("*/*/manifest.json")):
        assert time.monotonic() < deadline, worker.log_tail()
        time.sleep(0.05)
    worker.signal(signal.SIGKILL)
    worker.wait()
    (store / "down").unlink()
    start_worker(**there)
    report = receiver.wait_for("job-1", "completed")
    assert report["metadata"]["attempt"] == 1
    assert len([item for item in receiver.reports("job-1") if item["status"] == "processing"]) == 1
    assert report["assets"][0]["url"] == "store/user-1/job-1/0.mp4"
    assert (store / "user-1/job-1/0.mp4").is_file()
    assert not list((tmp_path / "data" / "spool").glob("*/*/manifest.json"))


def test_a_store_that_is_down_for_a_while_costs_nothing_but_time(start_worker, push, receiver, tmp_path):
    (tmp_path / "down").touch()
    start_worker(WAN_HOST_PUBLISHER="store", WAN_HOST_TESTING_STORE=str(tmp_path))
    push(payload("job-1"))
    receiver.wait_for("job-1", "processing")
    time.sleep(4)  # longer than a lease
    (tmp_path / "down").unlink()
    assert receiver.wait_for("job-1", "completed")["metadata"]["attempt"] == 1


def test_work_that_cannot_be_published_at_all_fails_with_the_reason(start_worker, push, receiver, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "outputs").write_text("in the way")
    start_worker()
    push(payload("job-1"))
    report = receiver.wait_for("job-1", "failed")
    assert report["metadata"]["error_type"] == "publish_refused"
    assert "Not a directory" in report["error_message"]


def test_a_report_waits_for_a_receiver_that_is_down(start_worker, push, receiver):
    failures = iter([503, None, 429])
    receiver.answer = lambda request: 200 if request.report["status"] == "processing" else next(failures, 200)
    start_worker()
    push(payload("job-1"))
    report = receiver.wait_for("job-1", "completed", seconds=30)
    keys = {item.headers["idempotency-key"] for item in receiver.received if item.report["status"] == "completed"}
    assert keys == {f"job-1:{report['metadata']['attempt']}:completed"}


def test_a_refused_report_is_kept_and_can_be_sent_again(start_worker, push, receiver, run_cli):
    receiver.answer = lambda request: 200 if request.report["status"] == "processing" else 404
    start_worker()
    push(payload("job-1"))
    deadline = time.monotonic() + 20
    while json.loads(run_cli("jobs", "show", "job-1").stdout)["status"] != "report_refused":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    receiver.answer = lambda _: 200
    run_cli("jobs", "retry", "job-1")
    receiver.wait_for("job-1", "completed")


def test_health_has_the_seeds_fields_and_ready_says_why_not(start_worker, environment):
    worker = start_worker()
    status, health = worker.get("/health")
    assert status == 200
    assert health["status"] == "healthy"
    assert health["device"] == "cpu"
    assert health["wan_model_loaded"] is False
    assert health["qwen_model_loaded"] is False
    assert worker.get("/ready") == (200, {"ready": True, "problems": []})


def test_a_required_plugin_that_is_missing_makes_the_worker_unready_but_alive(environment, tmp_path):
    from wan_host.testing.process import WorkerProcess

    worker = WorkerProcess(data_dir=tmp_path / "data", environment={**environment, "WAN_HOST_REQUIRED_PLUGINS": "absent"}).start()
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


def test_once_drains_the_queue_and_leaves_no_process(start_worker, push, receiver, run_cli, tmp_path):
    for index in range(5):
        run_cli("submit", "-", text=payload(f"job-{index}"))
    worker = start_worker("--once")
    assert worker.wait(60) == 0, worker.log_tail()
    for index in range(5):
        receiver.wait_for(f"job-{index}", "completed", seconds=1)
    leftovers = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]
    assert not leftovers


def test_submit_wait_shows_the_end_of_the_job(start_worker, receiver, run_cli):
    start_worker()
    done = run_cli("submit", "-", "--wait", text=payload("job-1"))
    assert json.loads(done.stdout.partition("\n")[2])["result"]["assets"][0]["type"] == "video"
    failed = run_cli("submit", "-", "--wait", text=payload("job-2", prompt="refuse"), check=False)
    assert failed.returncode == 2
    assert "refusal" in failed.stdout


def test_images_come_one_file_each_with_consecutive_seeds(start_worker, push, receiver, tmp_path):
    start_worker()
    job = json.loads(payload("job-1", num_images=3, seed=7))
    job["type"] = "image_high"
    del job["config"]["frames"]
    push(json.dumps(job))
    assets = receiver.wait_for("job-1", "completed")["assets"]
    assert [asset["url"] for asset in assets] == [f"workspace-temp/user-1/job-1/{index}.png" for index in range(3)]
    assert [asset["metadata"]["seed"] for asset in assets] == [7, 8, 9]
