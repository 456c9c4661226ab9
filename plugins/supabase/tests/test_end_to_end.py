"""A worker in its own process, and a project: one job from the queue to the bucket and the receiver."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from PIL import Image
from redis import Redis

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, SERVICE_KEY, Stored
from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.server import Answer, scripted_server


@pytest.fixture
def worker(project, tmp_path):
    plugins = tmp_path / "plugins"
    instant.install(plugins)
    with scripted_server(lambda asked: Answer(200)) as proxy:
        environment = {
            "PYTHONPATH": os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "WAN_HOST_CONFIG": "",
            "WAN_HOST_MODEL": "instant",
            "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance",
            "WAN_HOST_DEVICES": "cpu",
            "WAN_HOST_PUBLISHER": "supabase",
            "WAN_HOST_PUBLIC_URL": proxy.url,
            "SUPABASE_URL": project.url,
            "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY,
            "JOB_CALLBACK_SECRET": CALLBACK_SECRET,
        }
        with WorkerProcess(data_dir=tmp_path / "data", environment=environment) as running:
            yield running


def push(data_dir, job_id, image):
    job = {
        "id": job_id,
        "type": "video_fast",
        "prompt": "a red circle",
        "user_id": "u1",
        "config": {"width": 128, "height": 128, "frames": 9, "fps": 8, "reference_mode": "single", "image": image},
    }
    with Redis.from_url(EmbeddedServer(data_dir).url) as client:
        client.rpush("wan_queue", json.dumps(job))


def reported(project, job_id, status):
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        for report, _ in list(project.reports):
            if (report["job_id"], report["status"]) == (job_id, status):
                return report
        time.sleep(0.05)
    raise AssertionError(f"{job_id} was never {status}: {project.reports}")


def test_a_job_is_published_and_reported_through_faults_of_the_project(project, worker, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (160, 120), "teal").save(picture, "PNG")
    for user in ("u1", "u2"):
        project.objects["user-library", f"{user}/face.png"] = Stored(picture.getvalue(), "image/png", "no-cache")
    project.fail("GET", "face.png", "status", 503)
    project.fail("POST", "/storage/v1/object/workspace-temp", "reset_after")
    project.fail("POST", "/functions/v1/job-callback", "status_after", 503, skip=1)
    push(tmp_path / "data", "job-1", "user-library/u1/face.png")
    push(tmp_path / "data", "job-2", "user-library/u2/face.png")

    (asset,) = reported(project, "job-1", "completed")["assets"]
    assert (asset["url"], asset["thumbnail_url"]) == ("workspace-temp/u1/job-1/0.mp4", "workspace-temp/u1/job-1/0.thumb.webp")
    assert asset["metadata"]["file_size_bytes"] == len(project.data(asset["url"]))
    assert project.objects["workspace-temp", "u1/job-1/0.thumb.webp"].content_type == "image/webp"
    failed = reported(project, "job-2", "failed")
    assert failed["metadata"]["error_type"] == "reference_rejected"
    assert "belongs to another user" in failed["error_message"]
    assert [fields["auto_registered"] for fields in project.registrations] == [True]

    worker.__exit__(None, None, None)
    assert project.registrations[-1]["worker_url"] == ""
    assert SERVICE_KEY not in worker.log.read_text()
    assert CALLBACK_SECRET not in worker.log.read_text()
