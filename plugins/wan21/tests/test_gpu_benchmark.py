"""benchmarks/gpu runs anywhere: at tiny size on the CPU it measures every variant, goes on after a cut, and reports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch  # noqa: TID253  # a test of torch code

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"


@pytest.fixture
def run(tmp_path):
    def benchmark(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, SCRIPT, "--device", "cpu", "--size", "tiny", "--quick", "--cases", "image", "--commit", "this"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WAN_HOST_DATA_DIR": str(tmp_path)}
        return subprocess.run(
            [*command, "--out", tmp_path, *arguments], capture_output=True, text=True, env=environment, check=False
        )

    return benchmark


def test_every_variant_is_measured_beside_stock_and_a_cut_run_goes_on(run, tmp_path):
    first = run("--variants", "stock,exact")
    assert first.returncode == 0, first.stderr
    second = run()
    assert second.returncode == 0, second.stderr
    assert "warm image stock" in first.stdout
    assert "warm image stock" not in second.stdout, "what was measured is not measured again"
    measured = {row["variant"]: row for row in json.loads((tmp_path / "results.json").read_text())["runs"]}
    assert list(measured) == ["stock", "exact", "fast", "turbo"]
    assert measured["exact"]["error"] == 0, "on a CPU exact is stock bit for bit"
    assert 0 < measured["fast"]["error"] < 1
    assert measured["fast"]["passes"] < measured["stock"]["passes"] == 16
    assert set(measured["stock"]["stages"]) == {"text_encode", "denoise", "decode"}
    table = (tmp_path / "results.md").read_text()
    assert all(f"| image | {variant} | 1 |" in table for variant in measured)
    assert "random weights" in table
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_a_question_that_nobody_can_answer_is_refused(run):
    asked = run("--look", "waits,passes")
    assert asked.returncode == 2
    assert "--look passes: it must be of waits, kernels, decoders, encoders, handover" in asked.stderr


@pytest.fixture
def closer(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT)
    return importlib.import_module("closer")


def test_kernels_are_profiled_as_they_run_in_jobs(closer, t2v):
    given = {}
    subject = importlib.import_module("subject")

    def transformer(*, return_dict, **inputs):
        given.update(inputs)
        return inputs["hidden_states"] + return_dict

    transformer.dtype = torch.float32
    profiled = SimpleNamespace(
        components=SimpleNamespace(plain=transformer),
        device=torch.device("cpu"),
        config=t2v.components.plain.config,
        run=lambda *_: None,
    )
    table = closer.kernels(profiled, subject.Case("video", 9, 32, 48, 8), "exact")
    assert table.startswith("exact, ms a pass: attention ")
    assert {len(tensor) for tensor in given.values()} == {1}
    text = given["encoder_hidden_states"]
    assert (text[:, 15:] == text[:, -1:]).all(), "as a short prompt is padded"
    assert not (text[:, 14] == text[:, -1]).all()


def test_an_adapter_is_put_in_before_the_clock_starts_and_timed_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT)
    module = importlib.import_module("subject")
    subject, case = module.Subject(None, "tiny", torch.device("cpu"), tmp_path), module.Case("image", 1, 32, 48, 4)
    preset, there = subject._preset, []

    def timed(*arguments):
        there.append(subject.model.loras.active)
        return preset(*arguments)

    subject._preset = timed
    seconds = [subject.run(variant, case)["adapter_seconds"] for variant in ("exact", "turbo", "turbo", "stock", "turbo")]
    assert [known is None for known in seconds] == [True, False, True, True, False]
    assert there == [False, True, True, True], "of those that are no stock"
    subject.run("stock", case)
    assert not subject.model.loras.active


def test_the_walk_over_the_encoder_is_measured_against_stock(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT)
    module = importlib.import_module("subject")
    subject = module.Subject(None, "tiny", torch.device("cpu"), tmp_path)
    rows = importlib.import_module("encoders").encoders(subject, module.Case("video", 9, 32, 48, 4))
    walk, last = (next(row for row in rows if row["name"] == name) for name in ("walk", "walk, channels last"))
    assert walk["against stock"] == 0 < last["against stock"] < 1e-5
    assert walk["seconds"] > 0


def test_results_of_another_environment_are_not_mixed(tmp_path):
    specification = importlib.util.spec_from_file_location("gpu_results", SCRIPT / "results.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    kept = module.Results(tmp_path / "results.json", {"torch": "1.0", "device": "one"}, fresh=False)
    kept.add("runs", {"case": "image", "variant": "stock", "repeat": 0, "seconds": 2.0})
    assert module.Results(kept.path, {"torch": "1.0", "device": "one"}, fresh=False).has("image", "stock", 0)
    with pytest.raises(SystemExit, match="was measured with another torch; --fresh begins anew"):
        module.Results(kept.path, {"torch": "2.0", "device": "one"}, fresh=False)
    assert module.Results(kept.path, {"torch": "2.0", "device": "one"}, fresh=True).found["runs"] == []
