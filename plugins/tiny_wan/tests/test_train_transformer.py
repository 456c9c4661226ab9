# ruff: noqa: TID253 - tests of numerical code import it at the top
"""What training does where a step's gradients are not finite."""

import argparse

import pytest
import torch
from training import train_transformer
from training.architecture import TINY, build_vae
from training.latents import Captions, Kind

KIND = Kind("main", 1.0, 2, 1, 5, 32, 32, clips=3, clips_with_control=3)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return a function that trains a moment, with gradients of ones where it is told so and of NaN elsewhere."""
    monkeypatch.setattr(train_transformer, "QUICK_KINDS", (KIND,))
    monkeypatch.setattr(train_transformer, "load_vae", lambda _folder, _size: build_vae(TINY).eval())
    monkeypatch.setattr(Captions, "ids", lambda _self, kind: torch.ones(kind.clips, 4, 8, dtype=torch.uint8))

    def run(finite, seconds):
        asked = iter(range(10**6))

        class Gradients:
            def __init__(self, transformer, *_):
                self.parameters = list(transformer.parameters())

            def __call__(self, batch, _text):
                value = 1.0 if finite(next(asked)) else torch.nan
                for p in self.parameters:
                    p.grad = torch.full_like(p, value)
                return torch.ones(len(batch["noisy"]))

        monkeypatch.setattr(train_transformer, "Gradients", Gradients)
        rates = {"matrix_rate": 1e-3, "other_rate": 1e-3, "fall_from": 1.0}
        train_transformer.train(
            argparse.Namespace(
                quick=True, clips=1.0, seed=1, device="cpu", resume=None, vae=tmp_path, out=tmp_path / "out", compile=False,
                seconds=seconds, save_every=1e9, report=100, **rates
            )
        )  # fmt: skip

    return run


def test_a_step_without_finite_gradients_changes_no_weight_and_training_goes_on(train, tmp_path, capsys):
    train(lambda step: step != 1, 2.0)
    said = capsys.readouterr().out
    assert "no finite gradients (1): the weights stay as they are" in said
    assert "(2)" not in said
    state = train_transformer.load_file(next((tmp_path / "out/transformer").glob("*.safetensors")))
    assert all(value.isfinite().all() for value in state.values())


def test_training_ends_where_no_step_has_finite_gradients(train, capsys):
    with pytest.raises(SystemExit, match="the loss is no number any more"):
        train(lambda _step: False, 600.0)
    assert f"no finite gradients ({train_transformer.MOST_LOST + 1})" in capsys.readouterr().out
