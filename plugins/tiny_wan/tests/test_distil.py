"""A few seconds of distillation bring four unguided steps nearer to the guided path, in a file that the plugin can run."""

# ruff: noqa: TID253 - tests of numerical code import it at the top
import json

import torch
from safetensors import safe_open
from training import distil
from training.architecture import TINY, build_text_encoder, build_tokenizer, build_transformer, build_vae, save_checkpoint
from training.joint import patches
from wan_host_wan21.turbo import read_turbo


def checkpoint(folder):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = build_transformer(TINY)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_checkpoint(folder, build_vae(TINY), transformer, build_text_encoder(TINY, len(tokenizer)), tokenizer, torch.float32)
    return folder


def test_the_adapter_goes_where_the_teacher_goes(tmp_path):
    model, out = checkpoint(tmp_path / "model"), tmp_path / "turbo.safetensors"
    command = ["--model", str(model), "--out", str(out), "--quick", "--no-compile", "--device", "cpu", "--updates", "150"]
    before, after = distil.distil(distil.arguments().parse_args(command))
    assert after < 0.8 * before
    turbo = read_turbo(out)
    assert (turbo.sampler, len(turbo.sigmas)) == ("euler", 4)
    with safe_open(out, "pt") as file:
        keys = set(file.keys())
        assert json.loads(file.metadata()["wan_host_turbo"])["sigmas"] == distil.sigmas(4)[:-1]
    transformer = build_transformer(TINY)
    for key in keys:
        layer = transformer.get_submodule(key.removeprefix("transformer.").rsplit(".lora_", 1)[0])
        assert isinstance(layer, torch.nn.Linear)
    assert any(key.startswith("transformer.vace_blocks.0.attn1.to_q") for key in keys)


def test_a_walk_is_of_second_order():
    """The path of dx/ds = x from s = 1 to 0 ends at x / e; Euler's 24 steps would be off by two per cent."""
    start = torch.ones(1, dtype=torch.float64)
    end = distil.walk(lambda x, _sigma: x, start, distil.sigmas(4), distil.SMALL_STEPS)
    assert len(end) == 5
    assert abs(float(end[-1]) - 0.36788) < 2e-3


def test_unpatched_is_the_way_back():
    x = torch.randn(2, 16, 3, 4, 6)
    assert torch.equal(distil.unpatched(patches(x), x.shape), x)


def test_factors_start_as_nothing_and_can_be_told_to_stay_out():
    transformer = build_transformer(TINY)
    layer = transformer.blocks[0].attn1.to_q
    weight = layer.weight.detach().clone()
    adapters = distil.adapt(transformer, 4)
    assert torch.equal(layer.weight, weight)
    adapters["blocks.0.attn1.to_q"].up.data.fill_(1.0)
    assert not torch.equal(layer.weight, weight)
    assert not any(p.requires_grad for name, p in transformer.named_parameters() if name.endswith("original"))
