# ruff: noqa: TID253 - tests of numerical code import it at the top
"""What training saves on its way is whole at any moment."""

import pytest
import torch
from training.architecture import TINY, build_text_encoder, build_tokenizer, build_transformer
from training.train_transformer import Average, build_models, save


def test_a_save_that_breaks_off_leaves_the_one_before(tmp_path, monkeypatch):
    words = len(build_tokenizer())
    models = build_transformer(TINY), build_text_encoder(TINY, words)
    average, out = Average(models), tmp_path / "runs/tr"
    save(out, average, *models, TINY, words, [], 1)
    (out / "of another").touch()
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.parent.name for path in kept} == {"tr", "transformer", "text_encoder"}

    average.mean = [mean + 1 for mean in average.mean]
    whole = type(models[1]).save_pretrained

    def broken(*given, **named):
        whole(*given, **named)
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(type(models[1]), "save_pretrained", broken)
        with pytest.raises(OSError, match="no space left"):
            save(out, average, *models, TINY, words, [], 2)
    assert {path: path.read_bytes() for path in kept} == kept

    save(out, average, *models, TINY, words, [], 3)
    assert sorted(path.name for path in out.iterdir()) == ["of another", "text_encoder", "transformer", "transformer.json"]
    _, transformer, _ = build_models(TINY, out, torch.device("cpu"))
    assert torch.equal(next(transformer.parameters()), average.mean[0].bfloat16().float())


def test_training_keeps_away_from_the_attention_whose_backward_pass_makes_nan():
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    try:
        build_models(TINY, None, torch.device("cpu"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
