"""Estimates come from what jobs took, and stay sane with little, odd or broken history."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from tests.sample_jobs import resolve
from wan_host.costs import CostModel


@pytest.fixture
def model(tmp_path):
    return CostModel(tmp_path / "costs.json", device="A100")


def shaped(width=256, height=256, frames=17, steps=20, **more):
    job = resolve()
    return dataclasses.replace(
        job,
        request=dataclasses.replace(
            job.request, width=width, height=height, frames=frames, num_inference_steps=steps, num_images=1, **more
        ),
    )


def took(step=1.0, steps=20, **stages):
    return {"denoise": step * steps, "decode": 2.0, "encode": 1.0, "text_encode": 0.5, **stages}


def test_nothing_is_known_before_the_first_job(model):
    assert model.estimate(shaped()) is None
    assert model.mean_seconds() is None


def test_the_same_job_takes_what_it_took(model):
    model.observe(shaped(), took())
    found = model.estimate(shaped())
    assert (found.before, found.denoise, found.after) == pytest.approx((0.5, 20, 3))
    assert model.mean_seconds() == pytest.approx(23.5)


def test_more_steps_take_more_of_the_same(model):
    model.observe(shaped(), took())
    assert model.estimate(shaped(steps=50)).denoise == pytest.approx(50)


def test_one_job_tells_of_others_by_their_size(model):
    model.observe(shaped(), took())
    assert model.estimate(shaped(width=512)).denoise == pytest.approx(40)


def test_a_power_law_is_found_in_the_history(model):
    for width in (128, 256, 512, 1024):
        model.observe(shaped(width=width), took(step=(width / 256) ** 1.6))
    assert model.estimate(shaped(width=768)).denoise == pytest.approx(20 * 3**1.6, rel=0.15)
    assert model.estimate(shaped(width=64)).denoise == pytest.approx(20 * 0.25**1.6, rel=0.25)


def test_the_latest_jobs_of_a_shape_count(model):
    for step in (9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        model.observe(shaped(), took(step=step))
    assert model.estimate(shaped()).denoise == pytest.approx(20)


def test_kinds_of_jobs_are_not_mixed(model):
    model.observe(shaped(), took())
    assert model.estimate(shaped(preset="turbo")) is None


def test_a_load_counts_only_where_the_model_is_not_there(model):
    model.observe(shaped(), took(load=30.0))
    model.observe(shaped(), took())
    assert model.estimate(shaped()).before == pytest.approx(0.5)
    assert model.estimate(shaped(), loaded=False).before == pytest.approx(30.5)


def test_the_history_outlives_the_worker_and_belongs_to_a_device(model, tmp_path):
    model.observe(shaped(), took())
    model.save(now=True)
    again = CostModel(tmp_path / "costs.json", device="A100")
    assert again.estimate(shaped()) == model.estimate(shaped())
    assert CostModel(tmp_path / "costs.json", device="H100").estimate(shaped()) is None


def test_the_history_is_bounded(model, tmp_path):
    for number in range(100):
        for width in range(16, 16 * 61, 16):
            model.observe(shaped(width=width, preset=f"preset-{number}"), took())
    model.save(now=True)
    assert (tmp_path / "costs.json").stat().st_size < 200_000
    assert model.estimate(shaped(preset="preset-0")) is None
    assert model.estimate(shaped(preset="preset-99")) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"device": "A100"}',
        '{"device": "A100", "kinds": {"a": [[0, 1, 1, 1, 1, 1]]}}',
        '{"device": "A100", "kinds": {"a": [[5, -1, 1, 1, 1, 1]]}}',
        '{"device": "A100", "kinds": {"a": [["x"]]}}',
        '{"device": "A100", "kinds": [["a", []]]}',
        '{"device": "A100", "kinds": {"a": {"b": 1}}}',
        '{"device": "A100", "kinds": {"a": [[Infinity, 1, 1, 1, 1, 1]]}}',
        '{"device": "A100", "kinds": {"a": [[1e999, 1, 1, 1, 1, 1]]}}',
        f'{{"device": "A100", "kinds": {{"a": [[5, 1{"0" * 400}, 1, 1, 1, 1]]}}}}',
        "[" * 100_000,
    ],
)
def test_a_history_that_is_broken_is_begun_anew(tmp_path, text, caplog):
    file = tmp_path / "costs.json"
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        model = CostModel(file, device="A100")
    assert model.estimate(shaped()) is None
    model.observe(shaped(), took())
    model.save(now=True)
    assert json.loads(file.read_text())["kinds"]


def test_a_folder_that_cannot_be_written_costs_no_job(tmp_path):
    model = CostModel(tmp_path / "absent" / "costs.json", device="cpu")
    model.observe(shaped(), took())
    model.save(now=True)


def test_a_worker_of_the_same_folder_that_saves_meanwhile_does_no_harm(tmp_path, monkeypatch, caplog):
    mine, other = (CostModel(tmp_path / "costs.json", device="A100") for _ in range(2))
    mine.observe(shaped(), took())
    replace = Path.replace

    def late(path, target):
        monkeypatch.setattr(Path, "replace", replace)
        other.save(now=True)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", late)
    with caplog.at_level(logging.WARNING):
        mine.save(now=True)
    assert caplog.messages == []
    assert CostModel(tmp_path / "costs.json", device="A100").estimate(shaped()) == mine.estimate(shaped())
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]
