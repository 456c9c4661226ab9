# ruff: noqa: TID253 - tests of numerical code import it at the top
"""Training the decoder alone leaves the latents, and what a transformer knows of them, as they were."""

import pytest
import torch
from training.architecture import TINY
from training.train_vae import arguments, load, train, training_clips


def run(*given: object) -> None:
    train(arguments().parse_args(["--device", "cpu", "--quick", *map(str, given)]))


def test_the_decoder_learns_and_the_latents_stay(tmp_path):
    run("--out", tmp_path / "a", "--seconds", 0.1)
    run("--out", tmp_path / "b", "--seconds", 0.3, "--resume", tmp_path / "a", "--decoder")
    before, after = (load(tmp_path / name, TINY) for name in "ab")
    learned = {name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])}
    assert learned
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in learned)
    for name in ("latents_mean", "latents_std"):
        assert before.config[name] == after.config[name]


def test_without_a_checkpoint_there_is_no_encoder_to_keep(tmp_path):
    with pytest.raises(SystemExit, match="--decoder: needs --resume"):
        run("--out", tmp_path, "--decoder")


def test_an_objects_pixels_count_more():
    _, even = training_clips(5, 32, 32, 4, 1, "cpu")
    assert torch.equal(even, torch.ones(4, 1, 5, 32, 32))
    clip, weight = training_clips(5, 32, 32, 4, 1, "cpu", object_weight=8.0)
    assert weight.mean().isclose(torch.tensor(1.0))
    assert (weight.max() / weight.min()).isclose(torch.tensor(8.0))
    assert clip.shape == (4, 3, 5, 32, 32)
