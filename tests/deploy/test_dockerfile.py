"""The Dockerfile's own steps, taken from the file and run in a clean virtual environment: they cannot rot unseen.

Not run are the steps that only an image can have: apt-get, and what surrounds the instructions (users, ports, layers).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.deploy.monitoring import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "Dockerfile"
IGNORED = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()


@dataclass
class Stage:
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages():
    """Instructions by stage, with lines joined, comments and mounts taken away."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found = {}
    stage = Stage(base="")
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            stage = found[name] = Stage(base=base)
        else:
            stage.steps.append((word, re.sub(r"--mount=\S+\s*", "", rest).strip()))
    return found


def copy_context(clone, sources):
    """What the build would see of a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", clone], check=True)
    left_out = [line.removeprefix("**/") for line in IGNORED if line.startswith("**/")]
    for kept in (line.removeprefix("!") for line in IGNORED if line.startswith("!")):
        (sources / kept).parent.mkdir(parents=True, exist_ok=True)
        if (clone / kept).is_dir():
            shutil.copytree(clone / kept, sources / kept, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy2(clone / kept, sources / kept)


def build(folder, **arguments):
    """Run the steps of both stages. Returns the folder of the virtual environment."""
    places = {"SOURCES": str(folder / "src"), "BUILD": str(folder / "build"), "VENV": str(folder / "venv")}
    copy_context(folder / "clone", folder / "src")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("WAN_HOST_", "VIRTUAL_ENV", "PYTEST"))}
    for name, stage in stages().items():
        environment = {**plain, **places}
        for word, rest in stage.steps:
            if word == "ARG":
                argument, _, default = rest.partition("=")
                environment[argument] = arguments.get(argument, default.strip('"'))
            elif word == "ENV":
                given = dict(item.split("=", 1) for item in shlex.split(rest))
                environment |= {key: value for key, value in given.items() if key not in places and key != "PATH"}
            elif word == "RUN" and not rest.startswith("apt-get"):
                done = subprocess.run(
                    ["bash", "-o", "pipefail", "-ec", rest],
                    cwd=places["SOURCES"] if name == "wheels" else folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
    return folder / "venv"


def run(venv, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WAN_HOST_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [venv / "bin" / "wan-host", *arguments],
        env=clean | environment,
        cwd=venv.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def workshop(tmp_path):
    """A folder that does not stay: what is installed there weighs more than a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_steps_install_every_plugin_and_a_job_runs(workshop):
    venv = build(workshop)
    found = json.loads(run(venv, "plugins", "--json"))
    folders = {path.parent.name for path in (workshop / "clone" / "plugins").glob("*/pyproject.toml")}
    assert {f"wan-host-{name.replace('_', '-')}" for name in folders} <= {item["distribution"] for item in found}
    assert {item["status"] for item in found} == {"ok"}
    run(venv, "generate", "a red circle", "--output", str(workshop / "out"), WAN_HOST_DATA_DIR=str(workshop / "data"))
    assert (workshop / "out" / "0.mp4").stat().st_size > 1000
    assert (workshop / "out" / "0.thumb.webp").is_file()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_build_argument_chooses_the_plugins(workshop):
    venv = build(workshop, PLUGINS="thumbnail", EXTRA="wheel")
    installed = subprocess.run([venv / "bin" / "pip", "list"], capture_output=True, text=True, check=True).stdout
    own = set(re.findall(r"^wan-host\S*", installed, re.MULTILINE))
    assert own == {"wan-host", "wan-host-thumbnail"}
    assert re.search(r"^wheel\s", installed, re.MULTILINE), "other people's plugins come by EXTRA"
    assert not re.search(r"^torch\s", installed, re.MULTILINE)


def test_what_the_steps_read_is_not_kept_out_of_the_build():
    kept = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    named = set(
        re.findall(
            r"\b(?:deploy/[\w/.-]+|constraints\.txt)", " ".join(rest for stage in stages().values() for _, rest in stage.steps)
        )
    )
    assert named == {"deploy/distributions.py", "deploy/runpod/start.sh", "constraints.txt"}
    assert named <= kept
    assert all((ROOT / path).exists() for path in kept)


def test_the_image_runs_as_nobody_in_particular_and_starts_a_worker():
    steps = stages()["worker"].steps
    assert [rest for word, rest in steps if word == "USER"] == ["${RUN_AS}"]
    assert ("ARG", "RUN_AS=wan-host") in steps
    assert any("useradd" in rest and "wan-host" in rest for word, rest in steps if word == "RUN")
    assert ("CMD", '["wan-host", "run"]') in steps
    assert "ARG CUDA_IMAGE=nvidia/cuda:" in DOCKERFILE.read_text()
    assert stages()["worker"].base == "${CUDA_IMAGE}"


def test_what_is_slow_is_installed_before_what_changes_often():
    steps = [rest for word, rest in stages()["worker"].steps if word in {"RUN", "COPY"}]
    order = [
        next(number for number, rest in enumerate(steps) if mark in rest)
        for mark in ("apt-get", "torch.txt", '--requirement "$BUILD/requirements', "*.whl")
    ]
    assert order == sorted(order)
    assert not any(rest.startswith(". ") for rest in steps), "the sources would spoil the cache of everything after them"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_healthcheck_tells_a_worker_that_answers_from_one_that_does_not(status, healthy):
    (check,) = [rest for word, rest in stages()["worker"].steps if word == "HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            """Stay silent."""

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        port = server.server_address[1]
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        environment = os.environ | {"WAN_HOST_PORT": str(port)}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, check=False)
        assert (done.returncode == 0) == healthy
