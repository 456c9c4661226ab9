import json
import os
import subprocess
import sys

import pytest
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver


class Site:
    """A data folder with workers, a receiver, a producer and a command line, as a user has them."""

    def __init__(self, folder, plugins):
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.receiver = Receiver()
        self.workers = []
        self.environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH", "")])),
            "WAN_HOST_DATA_DIR": str(self.data),
            "WAN_HOST_MODEL": "instant",
            "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan",
            "WAN_HOST_CALLBACK_URL": self.receiver.url,
            "WAN_HOST_LEASE_SECONDS": "3",
            "WAN_HOST_DEVICES": "cpu",
        }

    def start(self, *arguments, **more):
        """Start a worker and wait until it is ready."""
        worker = WorkerProcess(data_dir=self.data, environment={**self.environment, **more}, arguments=arguments)
        self.workers.append(worker)
        return worker.start().wait_ready()

    def push(self, *entries):
        """Push as a producer does that only knows Redis."""
        with Redis.from_url(EmbeddedServer(self.data).url) as client:
            client.rpush("wan_queue", *entries)

    def variables(self):
        """The environment of a user's command."""
        return {**os.environ, **self.environment, "COLUMNS": "200"}

    def cli(self, *arguments, text=None, check=True):
        """Run `wan-host` as a user does."""
        result = subprocess.run(
            [sys.executable, "-m", "wan_host", *arguments],
            env=self.variables(),
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    def __enter__(self):
        self.receiver.__enter__()
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            worker.__exit__(*error)
        self.receiver.__exit__(*error)


@pytest.fixture(scope="session")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    instant.install(folder, {"instant": "wan_host.testing.instant", "store": "wan_host.testing.store"})
    return folder


@pytest.fixture
def site(tmp_path, plugins):
    with Site(tmp_path, plugins) as there:
        yield there


@pytest.fixture(scope="module")
def busy_site(tmp_path_factory, plugins):
    """One site with a running worker for a whole file of tests that do not hurt each other."""
    with Site(tmp_path_factory.mktemp("site"), plugins) as there:
        there.start()
        yield there


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
