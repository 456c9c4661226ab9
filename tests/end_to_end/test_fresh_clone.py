"""The README's first command on a fresh clone, with nothing installed by hand."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
@pytest.mark.timeout(900)
def test_make_demo_on_a_fresh_clone_makes_a_video(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", clone], check=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("WAN_HOST_", "VIRTUAL_ENV", "PYTEST"))}
    plain |= {"WAN_HOST_DATA_DIR": str(tmp_path / "data")}
    for _ in range(2):  # safe to run again
        done = subprocess.run(["make", "demo"], cwd=clone, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "demo/0.mp4").stat().st_size > 1000
    assert (clone / "demo/0.thumb.webp").is_file()
    report = json.loads((clone / "demo/report.json").read_text())
    assert report["status"] == "completed"
    assert report["metadata"]["model"] == "tiny-wan"
    assert report["metadata"]["stage_seconds"]["denoise"] > 0
