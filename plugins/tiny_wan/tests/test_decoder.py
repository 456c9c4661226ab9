# ruff: noqa: TID253 - tests of numerical code import it at the top
"""Training the decoder alone leaves the latents, and what a transformer knows of them, as they were."""

import itertools

import pytest
import torch
from training import train_vae
from training.architecture import TINY, build_text_encoder, build_tokenizer, build_transformer, save_checkpoint
from training.train_vae import arguments, load, train, training_clips


def run(*given: object) -> None:
    train(arguments().parse_args(["--device", "cpu", "--quick", *map(str, given)]))


def export(stage, folder):
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(TINY, len(tokenizer))
    save_checkpoint(folder, load(stage, TINY), build_transformer(TINY), text_encoder, tokenizer)


@pytest.mark.parametrize("exported", [False, True])
def test_the_decoder_learns_and_the_latents_stay(tmp_path, exported):
    run("--out", tmp_path / "a", "--seconds", 0.1)
    first = tmp_path / "a"
    if exported:
        first = tmp_path / "model"
        export(tmp_path / "a", first)
    run("--out", tmp_path / "b", "--seconds", 0.3, "--resume", first, "--decoder")
    # An exported checkpoint is in bfloat16, and so is what becomes of the new one.
    before, after = (load(folder, TINY).to(torch.bfloat16) for folder in (first, tmp_path / "b"))
    learned = {name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])}
    assert learned
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in learned)
    for name in ("latents_mean", "latents_std"):
        assert list(before.config[name]) == list(after.config[name])


def test_a_decoder_that_is_cut_off_can_be_used(tmp_path, monkeypatch):
    """Its statistics are known from the start, so what is saved on the way is whole."""
    run("--out", tmp_path / "a", "--seconds", 0.1)
    steps, whole = itertools.count(), train_vae.loss_of

    def cut_off(*given):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(train_vae, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_vae, "loss_of", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("--out", tmp_path / "b", "--seconds", 60, "--resume", tmp_path / "a", "--decoder")
    before, after = (load(tmp_path / name, TINY) for name in "ab")
    assert before.config["latents_std"] == after.config["latents_std"]
    assert not torch.equal(before.decoder.conv_in.weight, after.decoder.conv_in.weight)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["vae.json", "vae.safetensors"]


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


def test_gray_frames_hide_the_object_and_its_weight():
    clip, weight = training_clips(5, 32, 32, 20, 1, "cpu", object_weight=8.0)
    gray = clip.eq(0).all(1).flatten(2).all(2)  # (clips, frames)
    assert gray.any()
    assert weight.transpose(1, 2)[gray].eq(weight.min()).all()


def test_without_a_weight_nobody_looks_for_objects(monkeypatch):
    monkeypatch.delattr(train_vae, "covered")
    assert training_clips(5, 32, 32, 4, 1, "cpu")[1].eq(1).all()
