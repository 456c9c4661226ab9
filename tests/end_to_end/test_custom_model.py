"""docs/custom-model.md, executed: from clips to a job on a model of one's own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wan_host.encoding import encode_asset
from wan_host.request import Clip
from wan_host.testing.media import read_frames
from wan_host.testing.samples import sample_context

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "custom-model.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
BROWN = (110, 70, 30)


def draw_clips(folder):
    """Circles that move on a brown background, with their captions."""
    folder.mkdir()
    rows, columns = np.mgrid[:64, :64]
    for index, (colour, rgb) in enumerate({"red": (220, 40, 40), "yellow": (230, 210, 40)}.items()):
        frames = np.full((9, 64, 64, 3), BROWN, np.uint8)
        for step in range(9):
            frames[step][(rows - 32) ** 2 + (columns - 16 - 4 * step) ** 2 < 100] = rgb
        clip = Clip(frames=frames, seed=0)
        encode_asset(clip, asset_index=index, kind="video", fps=8, workdir=folder, context=sample_context(folder))
        (folder / f"{index}.txt").write_text(f"a {colour} circle moves right on a brown background")


@pytest.fixture
def home(tmp_path):
    """A home folder, and the environment of somebody who works there on this repository."""
    draw_clips(tmp_path / "my-clips")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WAN_HOST_")}
    environment = {
        **plain,
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "site"),
        "PIP_TARGET": str(tmp_path / "site"),  # beside the others, without touching them
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: no isolation
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "WAN_HOST_PORT": str(port),
        "WAN_HOST_DEVICES": "cpu",
        "COLUMNS": "200",
    }
    return tmp_path, environment, port


def run(script, home, cwd):
    folder, environment, port = home
    script = f"set -eu\ncd {cwd}\n{script.replace('7860', str(port))}\npwd > {folder}/where"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")
def test_the_page_leads_from_clips_to_a_job_on_the_new_model(home):
    folder, environment, _ = home
    train, wrap, install, see, job, watch = BLOCKS
    losses = re.findall(r"loss ([\d.]+)", run(train.replace("--steps 60", "--steps 40"), home, ROOT))
    assert float(losses[-1]) < float(losses[0])
    run(wrap, home, folder)
    assert "passed" in run(install, home, folder)
    listed = run(see, home, folder)
    assert re.search(r"my_wan +│ wan-host-my-wan +│ 0\.1\.0 +│ ok", listed)
    assert str(folder / "my-wan") in listed

    start, submit = job.split("\n", 1)
    assert start == "wan-host run &"
    with subprocess.Popen([sys.executable, "-m", "wan_host", "run"], env=environment, cwd=folder) as worker:
        try:
            ended = json.loads(run(submit, home, folder))
            health, metrics = run(watch.splitlines()[0], home, folder), run(watch.splitlines()[1], home, folder)
        finally:
            worker.terminate()
    assert ended["status"] in {"published", "completed"}
    shown = json.loads(health)
    assert {"my_wan": "ok"}.items() <= {plugin["name"]: plugin["status"] for plugin in shown["plugins"]}.items()
    assert "my-wan" in shown["lanes"][0]["loaded"]
    assert 'wan_host_model_loaded{model="my-wan"} 1.0' in metrics
    assert re.search(r'wan_host_jobs_total\{[^}]*model="my-wan"[^}]*\} 1.0', metrics)

    request = json.loads((folder / "job.json").read_text())
    request |= {"id": "plain", "config": {**request["config"], "model": "tiny-wan"}}
    (folder / "plain.json").write_text(json.dumps(request))
    run("wan-host submit plain.json && wan-host run --once --port 0", home, folder)
    outputs = folder / ".local/share/wan-host/outputs/workspace-temp/me"
    tuned, plain = (read_frames(outputs / name / "0.mp4").astype(int) for name in ("mine", "plain"))
    assert np.abs(tuned - plain).mean() > 1, "the same seed gives another clip than tiny-wan's"
