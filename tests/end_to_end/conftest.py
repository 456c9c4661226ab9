import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    instant.install(folder, {"instant": "wan_host.testing.instant", "store": "wan_host.testing.store"})
    return folder


@pytest.fixture
def receiver():
    with Receiver() as server:
        yield server


@pytest.fixture
def environment(plugin_folder, receiver):
    path = os.pathsep.join([str(plugin_folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {
        "PYTHONPATH": path,
        "WAN_HOST_MODEL": "instant",
        "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan",
        "WAN_HOST_CALLBACK_URL": receiver.url,
        "WAN_HOST_LEASE_SECONDS": "3",
        "WAN_HOST_DEVICES": "cpu",
    }


@pytest.fixture
def start_worker(tmp_path, environment):
    started = []

    def start(*arguments, data_dir: Path | None = None, **more):
        worker = WorkerProcess(data_dir=data_dir or tmp_path / "data", environment={**environment, **more}, arguments=arguments)
        started.append(worker)
        return worker.start().wait_ready()

    yield start
    for worker in started:
        worker.__exit__(None, None, None)


@pytest.fixture
def push(tmp_path):
    """Push as a producer does that only knows Redis."""

    def push_raw(entry: str | bytes, data_dir: Path | None = None):
        with Redis.from_url(EmbeddedServer(data_dir or tmp_path / "data").url) as client:
            client.rpush("wan_queue", entry)

    return push_raw


def payload(job_id, prompt="a red circle", **config):
    job = {
        "id": job_id,
        "type": "video_fast",
        "prompt": prompt,
        "user_id": "user-1",
        "config": {"width": 128, "height": 128, "frames": 9, "fps": 8, **config},
        "metadata": {},
    }
    return json.dumps(job)


@pytest.fixture
def run_cli(tmp_path, environment):
    """Run `wan-host` as a user does."""

    def run(*arguments, text=None, check=True):
        result = subprocess.run(
            [sys.executable, "-m", "wan_host", *arguments],
            env={**os.environ, **environment, "WAN_HOST_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"},
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run
