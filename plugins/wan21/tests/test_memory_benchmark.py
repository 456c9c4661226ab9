"""benchmarks/gpu/memory.py tries every placement, holds their results against each other, and survives one that fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from wan_host import OutOfMemory

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu" / "memory.py"


def run(tmp_path, *arguments):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--size", "tiny", "--out", tmp_path, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WAN_HOST_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "memory.json").read_text())["rows"], (tmp_path / "memory.md").read_text()


def test_every_placement_is_tried_and_held_against_the_first(tmp_path):
    rows, table = run(tmp_path)
    assert [row["placement"] for row in rows] == ["resident", "text_off", "lean", "fp8"]
    assert [row["frames_equal"] and row["latents_equal"] for row in rows] == [True, True, True, False]
    assert [row["facts"]["placement"] for row in rows] == [row["placement"] for row in rows]
    estimates = [row["estimated_gib"] for row in rows]
    assert estimates[:3] == sorted(estimates[:3], reverse=True)
    assert all(set(row["phases"]) == {"text_encode", "denoise", "decode"} for row in rows)
    assert "| `lean` |" in table


def test_what_encoding_references_takes_is_a_phase_of_its_own(tmp_path, tiny_folder):
    rows, table = run(tmp_path, "--checkpoint", tiny_folder("vace"), "--mode", "both", "--placements", "resident,lean")
    for row in rows:
        assert set(row["phases"]) == {"text_encode", "vae_encode", "denoise", "decode"}
        assert row["phases"]["vae_encode"]["seconds"] < row["phases"]["denoise"]["seconds"]
        assert row["facts"]["route"] == "vace"
    assert "references both" in table


def test_a_placement_that_fails_is_written_down_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("gpu_memory", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_memory", module)
    specification.loader.exec_module(module)
    measured = module.measured

    def short(subject, case, placement, expected, mode):
        if placement == "text_off":
            raise OutOfMemory("too little\nand more of it")
        return measured(subject, case, placement, expected, mode)

    monkeypatch.setattr(module, "measured", short)
    monkeypatch.setattr(
        sys,
        "argv",
        ["memory", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path), "--placements", "resident,text_off,lean"],
    )
    module.main()
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert rows[1] == {"placement": "text_off", "error": "OutOfMemory: too little"}
    assert rows[2]["frames_equal"]
    assert "| `text_off` | OutOfMemory: too little |" in (tmp_path / "memory.md").read_text()
