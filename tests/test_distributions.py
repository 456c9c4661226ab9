"""Every distribution can be installed alone: what the wheels carry, and what they do without the sources."""

import json
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import wan_host
from wan_host.testing.process import WorkerProcess

ROOT = Path(__file__).parent.parent
PROJECTS = [ROOT, *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def build(folder, *projects):
    """Build wheels of projects; return their paths."""
    arguments = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    subprocess.run([sys.executable, *PIP, *arguments, *projects], check=True)
    return sorted(folder.glob("*.whl"))


def tracked(folder):
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


def test_the_hosts_wheel_carries_every_file_of_the_package_and_nothing_else(tmp_path):
    (wheel,) = build(tmp_path, ROOT)
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert tracked("wan_host") <= carried
    assert {name for name in carried if not name.startswith("wan_host/") or name.endswith(".pyc")} == set()


@pytest.mark.parametrize("project", PROJECTS[1:], ids=lambda path: path.name)
def test_plugins_say_which_hosts_and_plugins_they_work_with(project):
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    ours = [Requirement(line) for line in metadata["dependencies"] if line.startswith("wan-host")]
    assert "wan-host" in {wanted.name for wanted in ours}
    for wanted in ours:
        assert wanted.specifier.contains(wan_host.__version__)
        assert any(part.operator == "<" for part in wanted.specifier), f"{wanted} has no upper end"


class Clean:
    """A virtual environment that sees nothing of this repository but its wheels."""

    def __init__(self, folder):
        self.folder, self.wheels = folder, folder / "wheels"
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("WAN_HOST_", "PYTHON", "VIRTUAL_ENV"))}
        self.environment = {**plain, "WAN_HOST_DATA_DIR": str(folder / "data"), "WAN_HOST_DEVICES": "cpu", "COLUMNS": "200"}
        build(self.wheels, *PROJECTS)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)

    def python(self, *arguments, check=True):
        command = [self.folder / "venv" / "bin" / "python", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def install(self, distribution):
        self.python(*PIP, "install", "--find-links", self.wheels, "--constraint", ROOT / "constraints.txt", distribution)

    def wan_host(self, *arguments, check=True):
        return self.python("-m", "wan_host", *arguments, check=check)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return Clean(tmp_path_factory.mktemp("clean"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_host_alone_starts_and_says_how_to_get_a_model(clean, monkeypatch):
    clean.install("wan-host")
    assert str(ROOT) not in clean.python("-c", "import wan_host, sys; print(wan_host.__file__, *sys.path)").stdout
    assert [row["name"] for row in json.loads(clean.wan_host("plugins", "--json").stdout)] == ["local", "log"]
    hint = "no model is installed: `pip install wan-host-tiny-wan`"
    assert hint in clean.wan_host("models", "list").stdout
    assert hint in clean.wan_host("generate", "a cat", check=False).stderr
    doctor = clean.wan_host("doctor", check=False)
    assert doctor.returncode == 1
    assert hint in doctor.stdout
    assert "pip install 'wan-host[testing]'" in clean.wan_host("plugin", "test", check=False).stderr
    monkeypatch.setattr(sys, "executable", str(clean.folder / "venv" / "bin" / "python"))
    worker = WorkerProcess(data_dir=clean.folder / "alone", environment={"PYTHONPATH": ""}).start()
    try:
        deadline = time.monotonic() + 60
        while not any(hint in event.get("problem", "") for event in worker.events()) or not any(
            event["event"] == "listening" for event in worker.events()
        ):
            assert time.monotonic() < deadline, worker.log_tail()
            time.sleep(0.2)
        status, ready = worker.get("/ready")
        assert (status, worker.get("/health")[0]) == (503, 200)
        assert "no model is installed" in json.dumps(ready)
    finally:
        worker.__exit__(None, None, None)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_wheels_in_any_order_run_a_job_without_the_sources(clean):
    order = sorted((f"wan-host-{project.name.replace('_', '-')}" for project in PROJECTS[1:]), reverse=True)
    for name in order:  # each brings the host, and what else it needs, by itself
        clean.install(name)
    rows = json.loads(clean.wan_host("plugins", "--json").stdout)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["distribution"] for row in rows} == {"wan-host", *order}
    (clean.folder / "job.json").write_text(json.dumps(
        {"id": "job", "type": "video_fast", "user_id": "u", "prompt": "a red circle", "config": {"frames": 5, "steps": 2}}
    ))  # fmt: skip
    clean.wan_host("submit", "job.json")
    clean.wan_host("run", "--once", "--port", "0")
    state = json.loads(clean.wan_host("jobs", "show", "job").stdout)
    assert state["status"] == "completed", state
    outputs = clean.folder / "data" / "outputs" / "workspace-temp" / "u" / "job"
    assert {"0.mp4", "0.thumb.webp"} <= {path.name for path in outputs.iterdir()}
    assert clean.wan_host("plugin", "new", "mine", "--kind", "publisher").returncode == 0
    assert (clean.folder / "wan-host-mine" / "wan_host_mine" / "folder.py").is_file()
