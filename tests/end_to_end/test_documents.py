"""The documents' commands, run word for word against a worker; only names that stand for a reader's own are replaced."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Site, payload
from tests.end_to_end.test_supabase_functions import upstash
from tests.test_documents import RUN_BY, all_commands
from wan_host.queue import EmbeddedServer

HERE = "tests/end_to_end/test_documents.py"
KEY = "key-of-the-reader"
COMMANDS = [
    command
    for command in all_commands()
    if next((test for start, test in RUN_BY.items() if command.startswith(start)), "") == HERE
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, plugins):
    """A reader's folder with the files that the documents take for granted, a worker, and the queue as Upstash shows it."""
    folder = tmp_path_factory.mktemp("desk")
    with Site(folder, plugins) as site:
        site.environment |= {"WAN_WORKER_API_KEY": KEY, "WAN_HOST_HOST": "127.0.0.1"}
        (folder / "job.json").write_text(payload("one"))
        (folder / "jobs.jsonl").write_text(f"{payload('two')}\n{payload('three')}\n")
        worker = site.start()
        with upstash(EmbeddedServer(site.data).url) as bridge:
            yield site, worker, bridge


def run(desk, command):
    site, worker, bridge = desk
    command = command.replace("https://POD-7860.proxy.runpod.net", f"http://127.0.0.1:{worker.port()}")
    if command.startswith("curl "):
        command = command.replace("curl ", "curl --fail-with-body ", 1)
    program = Path(sys.executable).parent
    environment = {**os.environ, **site.environment, "PATH": f"{program}:{os.environ['PATH']}"}
    environment |= {"UPSTASH_REDIS_REST_URL": bridge.url, "UPSTASH_REDIS_REST_TOKEN": bridge.token}
    if not command.startswith("curl "):  # the reader's worker has the embedded queue
        environment |= {"UPSTASH_REDIS_REST_URL": "", "UPSTASH_REDIS_REST_TOKEN": ""}
    return subprocess.run(
        ["bash", "-c", command], cwd=site.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("wan-host ")])
def test_a_command_of_wan_host_works_as_it_stands(desk, command):
    done = run(desk, command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("redis-cli RPUSH ")])
def test_a_pushed_job_is_done(desk, command):
    site, _, _ = desk
    entry = shlex.split(command)[3]
    site.push(entry)
    site.receiver.wait_for(json.loads(entry)["id"], "completed")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_video_on_a_pod(desk):
    site, _, bridge = desk
    commands = [command for command in COMMANDS if command.startswith("curl ")]
    (push,) = [command for command in commands if "RPUSH" in command]
    done = run(desk, push)
    assert (done.returncode, json.loads(done.stdout).keys()) == (0, {"result"}), done.stderr
    assert ["RPUSH"] in bridge.requests
    site.receiver.wait_for("first", "completed")
    for command in commands:
        if command != push:
            done = run(desk, command)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert json.loads(run(desk, next(command for command in commands if command.endswith("/ready"))).stdout)["ready"] is True
    assert (site.folder / "first.mp4").read_bytes()[4:8] == b"ftyp"
