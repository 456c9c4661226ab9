"""Workers in their own processes, and a project: jobs from the queue to the bucket and the receiver."""

from __future__ import annotations

import io
import os
import signal
import time
from contextlib import ExitStack

import pytest
from PIL import Image
from wan_host_supabase.storage import AT_ONCE_BYTES

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, FORGED_KEY, SERVICE_KEY, Bucket, Stored
from wan_host.probe import probe
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.queue import LocalQueue
from wan_host.testing.server import Answer, scripted_server

OBJECT = "/storage/v1/object/workspace-temp"
TUS = "/storage/v1/upload/resumable/"


NOISY = """
import dataclasses

import numpy as np

from wan_host import Clip, Generation, hookimpl
from wan_host.testing import instant

load_model = instant.load_model


@hookimpl
def list_models():
    return [dataclasses.replace(model, name="noisy", runner="noisy") for model in instant.list_models()]


@hookimpl
def generate(request, context):
    size = (request.frames, request.height, request.width, 3)
    instant._note_run(request)
    return Generation(clips=(Clip(frames=np.random.default_rng(7).integers(0, 256, size, np.uint8), seed=request.seed),))
"""
"""A model whose clips no encoder makes small."""


@pytest.fixture
def queue(tmp_path):
    with LocalQueue(tmp_path / "data") as running:
        yield running


@pytest.fixture
def start(project, queue, tmp_path):
    """Return a worker of the project that runs; the settings given replace its own. It ends with the test."""
    plugins = tmp_path / "plugins"
    instant.install(plugins, {"instant": instant.__name__, "noisy": "noisy_model"})
    (plugins / "noisy_model.py").write_text(NOISY)
    with ExitStack() as ends:
        proxy = ends.enter_context(scripted_server(lambda asked: Answer(200)))

        def run(**settings):
            environment = {
                "PYTHONPATH": os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
                "WAN_HOST_CONFIG": "",
                "WAN_HOST_MODEL": "instant",
                "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance",
                "WAN_HOST_DEVICES": "cpu",
                "WAN_HOST_PUBLISHER": "supabase",
                "WAN_HOST_PUBLIC_URL": proxy.url,
                "WAN_HOST_LEASE_SECONDS": "20",
                "WAN_HOST_TESTING_RUNS": str(tmp_path / "runs"),
                "SUPABASE_URL": project.url,
                "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY,
                "JOB_CALLBACK_SECRET": CALLBACK_SECRET,
            }
            return ends.enter_context(WorkerProcess(data_dir=tmp_path / "data", environment=environment | settings))

        yield run


def job(job_id, **config):
    return {
        "id": job_id,
        "type": "video_fast",
        "prompt": "a red circle",
        "user_id": "u1",
        "config": {"width": 128, "height": 128, "frames": 9, "fps": 8, "reference_mode": "none", **config},
    }


def until(condition, what, seconds=40):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, what()
        time.sleep(0.02)
    return found


def reported(project, job_id, status):
    def found():
        return [report for report, _ in list(project.reports) if (report["job_id"], report["status"]) == (job_id, status)]

    return until(found, lambda: f"{job_id} was never {status}: {project.reports}")[0]


def test_a_job_is_published_and_reported_through_faults_of_the_project(project, queue, start):
    picture = io.BytesIO()
    Image.new("RGB", (160, 120), "teal").save(picture, "PNG")
    for user in ("u1", "u2"):
        project.objects["user-library", f"{user}/face.png"] = Stored(picture.getvalue(), "image/png", "no-cache")
    project.fail("GET", "face.png", "status", 503)
    project.fail("POST", OBJECT, "reset_after")
    project.fail("POST", "/functions/v1/job-callback", "status_after", 503, skip=1)
    worker = start()
    for number, user in enumerate(("u1", "u2"), start=1):
        queue.push(job(f"job-{number}", reference_mode="single", image=f"user-library/{user}/face.png"))

    (asset,) = reported(project, "job-1", "completed")["assets"]
    assert (asset["url"], asset["thumbnail_url"]) == ("workspace-temp/u1/job-1/0.mp4", "workspace-temp/u1/job-1/0.thumb.webp")
    assert asset["metadata"]["file_size_bytes"] == len(project.data(asset["url"]))
    assert project.objects["workspace-temp", "u1/job-1/0.thumb.webp"].content_type == "image/webp"
    failed = reported(project, "job-2", "failed")
    assert failed["metadata"]["error_type"] == "reference_rejected"
    assert "belongs to another user" in failed["error_message"]
    until(lambda: [fields["auto_registered"] for fields in project.registrations] == [True], worker.log_tail)

    worker.__exit__(None, None, None)
    assert project.registrations[-1]["worker_url"] == ""
    assert SERVICE_KEY not in worker.log.read_text()
    assert CALLBACK_SECRET not in worker.log.read_text()


def test_a_worker_that_is_killed_in_the_middle_of_an_upload_loses_nothing(project, queue, start, tmp_path):
    project.fail("PATCH", TUS, "slow", 200_000, skip=1)
    killed = start(WAN_HOST_MODEL="noisy")
    queue.push(job("large", width=512, height=512, frames=48, fps=24))
    until(lambda: project.count("PATCH", TUS) == 2, killed.log_tail)
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert not project.objects
    assert [fields["auto_registered"] for fields in project.registrations] == [True]  # a death says no goodbye

    start(WAN_HOST_MODEL="noisy")
    (asset,) = reported(project, "large", "completed")["assets"]
    data = project.data(asset["url"])
    assert asset["metadata"]["file_size_bytes"] == len(data) > AT_ONCE_BYTES
    (tmp_path / "0.mp4").write_bytes(data)
    assert probe(tmp_path / "0.mp4").frames == 48
    assert (tmp_path / "runs").read_text().splitlines() == ["large 1"]  # it was not generated again
    until(lambda: [fields["auto_registered"] for fields in project.registrations] == [True, True], lambda: project.registrations)


def test_what_cannot_be_published_is_named_and_what_may_pass_is_waited_for(project, queue, start, tmp_path):
    start(WAN_HOST_SUPABASE_TRIES="2")

    def refused(job_id):
        queue.push(job(job_id))
        report = reported(project, job_id, "failed")
        assert report["metadata"]["error_type"] == "publish_refused"
        return report["error_message"]

    bucket = project.buckets.pop("workspace-temp")
    assert "the bucket 'workspace-temp' does not exist" in refused("no-bucket")
    project.buckets["workspace-temp"] = Bucket(limit=100)
    assert "more than the file size limit" in refused("too-large")
    project.buckets["workspace-temp"] = bucket
    project.fail("POST", OBJECT, "status", 402)
    assert "over its quota" in refused("quota")

    project.fail("POST", OBJECT, "status", 503, times=5)  # two tries of the plugin's, and again by the host
    queue.push(job("down"))
    (asset,) = reported(project, "down", "completed")["assets"]
    assert asset["metadata"]["file_size_bytes"] == len(project.data(asset["url"]))
    runs = (tmp_path / "runs").read_text().splitlines()
    assert runs == ["no-bucket 1", "too-large 1", "quota 1", "down 1"]  # none was generated twice


def test_a_wrong_key_fails_the_job_and_its_report_waits_to_be_sent_by_hand(project, queue, start):
    worker = start(SUPABASE_SERVICE_ROLE_KEY=FORGED_KEY)
    queue.push(job("forged"))
    until(lambda: (state := queue.state("forged")) and state.report_state == "refused", worker.log_tail)
    state = queue.state("forged")
    assert (state.status, state.error["error_type"]) == ("failed", "publish_refused")
    assert "set SUPABASE_SERVICE_ROLE_KEY to the key of the project" in state.error["message"]
    assert "is SUPABASE_SERVICE_ROLE_KEY the service role key of this project?" in state.report_error
    assert not project.objects
    assert not project.reports
    assert FORGED_KEY not in worker.log.read_text()
