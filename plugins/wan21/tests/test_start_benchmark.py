"""benchmarks/gpu/start.py runs anywhere: at tiny size on the CPU, stock and plugin load the same bits, cold and warm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu" / "start.py"


@pytest.mark.long
def test_stock_and_plugin_make_their_first_step_from_the_same_weights(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--size", "tiny", "--out", tmp_path, "--work", tmp_path / "work"]
    chosen = ["--variants", "stock,eager", "--repeats", "0", "--budget", "600"]
    done = subprocess.run(
        [*command, *chosen], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "start.json").read_text())["runs"]
    assert [(row["variant"], row["cold"]) for row in rows] == [
        ("stock", True),
        ("eager", True),
        ("stock", False),
        ("eager", False),
    ]
    assert all(sum(row["phases"].values()) == pytest.approx(row["seconds"], abs=0.01) for row in rows)
    assert len({row["fingerprint"] for row in rows}) == 1
    assert [row["cached"] for row in rows] == [pytest.approx(float(not row["cold"]), abs=0.3) for row in rows]
    assert (tmp_path / "start.md").read_text().count("| the same |") == 4
