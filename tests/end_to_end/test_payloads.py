"""What producers push, good and bad, to one worker that goes on through all of it."""

import itertools
import json

import pytest

from tests.end_to_end.conftest import payload
from wan_host.probe import probe

numbers = itertools.count()


@pytest.fixture
def job_id():
    return f"job-{next(numbers)}"


def test_a_pushed_job_is_reported_twice_and_its_file_is_what_was_asked_for(busy_site, job_id):
    busy_site.push(payload(job_id, frames=7, fps=12))
    report = busy_site.receiver.wait_for(job_id, "completed")
    reports = busy_site.receiver.reports(job_id)
    assert [item["status"] for item in reports] == ["processing", "completed"]
    assert reports[0]["sequence"] < reports[1]["sequence"]
    asset = report["assets"][0]
    assert asset["url"] == f"workspace-temp/user-1/{job_id}/0.mp4"
    assert asset["thumbnail_url"] == f"workspace-temp/user-1/{job_id}/0.thumb.webp"
    folder = busy_site.data / "outputs" / "workspace-temp" / "user-1" / job_id
    measured = probe(folder / "0.mp4")
    assert (measured.width, measured.height, measured.frames, measured.fps) == (128, 128, 7, 12)
    assert asset["metadata"]["frames"] == 7
    assert asset["metadata"]["file_size_bytes"] == (folder / "0.mp4").stat().st_size
    assert (folder / "0.thumb.webp").is_file()
    assert report["metadata"]["attempt"] == 1


@pytest.mark.parametrize("wrap", [lambda job: json.dumps([job]), lambda job: json.dumps([json.loads(job)]), json.dumps])
def test_entries_as_the_rest_api_leaves_them_are_jobs_too(busy_site, job_id, wrap):
    busy_site.push(wrap(payload(job_id, frames=1)))
    assert busy_site.receiver.wait_for(job_id, "completed")["assets"][0]["metadata"]["frames"] == 1


def test_fields_that_real_producers_send_are_ignored(busy_site, job_id):
    job = json.loads(payload(job_id, compel_enabled=True, nsfw_optimization=True, quality="fast", format="mp4"))
    job |= {"job_id": "other", "job_type": "wan_video_fast", "type": "wan_video_fast", "quality": "fast", "bucket": "x"}
    job["metadata"] |= {"reference_mode": "modify", "session": {"deep": [1, None]}}
    busy_site.push(json.dumps(job))
    assert busy_site.receiver.wait_for(job_id, "completed")["metadata"]["job_type"] == "video_fast"


def test_images_come_one_file_each_with_consecutive_seeds(busy_site, job_id):
    job = json.loads(payload(job_id, num_images=3, seed=7))
    job["type"] = "image_high"
    del job["config"]["frames"]
    busy_site.push(json.dumps(job))
    assets = busy_site.receiver.wait_for(job_id, "completed")["assets"]
    assert [asset["url"] for asset in assets] == [f"workspace-temp/user-1/{job_id}/{index}.png" for index in range(3)]
    assert [asset["metadata"]["seed"] for asset in assets] == [7, 8, 9]


BAD = {
    "type": (lambda job: job.update(type="sdxl_fast"), "invalid_job", "sdxl_fast"),
    "user": (lambda job: job.update(user_id="../../etc"), "invalid_job", "user_id"),
    "prompt": (lambda job: job.update(prompt=3), "invalid_job", "prompt"),
    "long prompt": (lambda job: job.update(prompt="x" * 5000), "invalid_job", "4000"),
    "10 MB": (lambda job: job.update(prompt="x" * 10_000_000), "invalid_job", "larger"),
    "width": (lambda job: job["config"].update(width=100), "invalid_job", "config.width"),
    "frames": (lambda job: job["config"].update(frames=84), "invalid_job", "config.frames"),
    "model": (lambda job: job["config"].update(model="no-such"), "unknown_model", "no-such"),
    "mode": (lambda job: job["config"].update(reference_mode="start"), "invalid_job", "first_frame"),
    "reference": (lambda job: job["config"].update(image="http://127.0.0.1/x.png"), "reference_rejected", "config.image"),
    "model says no": (lambda job: job.update(prompt="refuse"), "unsupported", "refusal"),
    "expired": (lambda job: job.update(expires_at=1), "deadline_exceeded", "expired"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_payload_is_reported_and_the_worker_goes_on(busy_site, job_id, name):
    change, error_type, words = BAD[name]
    job = json.loads(payload(job_id))
    change(job)
    busy_site.push(json.dumps(job))
    report = busy_site.receiver.wait_for(job_id, "failed")
    assert report["metadata"]["error_type"] == error_type
    assert words in report["error_message"]
    assert len(report["error_message"]) < 500
    (newest,) = json.loads(busy_site.cli("jobs", "list", "--dead", "--limit", "1", "--json").stdout)
    assert (newest["job_id"], newest["reason"]) == (job_id, error_type)
    busy_site.push(payload(f"after-{job_id}"))
    busy_site.receiver.wait_for(f"after-{job_id}", "completed")
    assert busy_site.workers[0].get("/ready")[0] == 200


@pytest.mark.parametrize(
    "entry", ["no json", b"\xff\xfe", "[]", "{}", '{"id": 5}', '{"id": "../x", "user_id": "u"}', '"x"', "null"]
)
def test_an_entry_without_a_usable_id_is_a_dead_letter(busy_site, job_id, entry):
    def dead():
        return len(json.loads(busy_site.cli("jobs", "list", "--dead", "--limit", "10000", "--json").stdout))

    before = dead()
    busy_site.push(entry)
    busy_site.push(payload(job_id))
    busy_site.receiver.wait_for(job_id, "completed")
    assert dead() == before + 1


def test_submit_wait_shows_the_end_of_the_job(busy_site, job_id):
    done = busy_site.cli("submit", "-", "--wait", text=payload(job_id))
    assert json.loads(done.stdout)["result"]["assets"][0]["type"] == "video"
    failed = busy_site.cli("submit", "-", "--wait", text=payload(f"{job_id}-refused", prompt="refuse"), check=False)
    assert failed.returncode == 2
    assert "refusal" in failed.stdout


def test_submit_refuses_a_wrong_file_at_once(busy_site):
    refused = busy_site.cli("submit", "-", text='{"id": "x", "type": "video_fast"}', check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("wan-host: prompt")


def test_health_has_the_seeds_fields(busy_site):
    status, health = busy_site.workers[0].get("/health")
    assert status == 200
    assert health["status"] == "healthy"
    assert health["device"] == "cpu"
    assert health["wan_model_loaded"] is False
    assert health["qwen_model_loaded"] is False
    assert busy_site.workers[0].get("/ready") == (200, {"ready": True, "problems": []})


def test_the_queues_commands_are_counted(busy_site):
    def counted():
        text = busy_site.workers[0].get("/metrics")[1]
        (line,) = [line for line in text.splitlines() if line.startswith('wan_host_queue_commands_total{backend="embedded"}')]
        assert "wan_host_report_pending " in text
        return float(line.split()[-1])

    before = counted()
    busy_site.push(payload("counted"))
    busy_site.receiver.wait_for("counted", "completed")
    assert counted() > before > 0
