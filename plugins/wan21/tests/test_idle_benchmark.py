"""benchmarks/gpu/idle.py runs anywhere: at tiny size on the CPU it measures both workers and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu" / "idle.py"


@pytest.mark.long
def test_gaps_are_measured_with_overlap_and_without(tmp_path):
    slow = ["--receiver-seconds", "0.5", "--publish-seconds", "0.3", "--fetch-seconds", "0.1"]
    subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--out", tmp_path, *slow],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    kept = json.loads((tmp_path / "idle.json").read_text())
    on, off = kept["summary"]
    assert (on["overlap"], on["gaps"], off["overlap"], off["gaps"]) == ("on", 3, "off", 1)
    assert off["gap_ms"] > 800, "receiver and publisher, one after the other"
    assert on["gap_ms"] < off["gap_ms"] / 2
    for parts in (gap for item in kept["rounds"] for gap in item["gaps"]):
        assert parts["gap"] == pytest.approx(parts["tail"] + parts["between"] + parts["head"])
        assert min(parts.values()) >= 0
    assert "| on |" in (tmp_path / "idle.md").read_text()
