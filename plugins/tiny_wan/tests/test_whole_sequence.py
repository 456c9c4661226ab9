"""The training forward of the autoencoder computes what diffusers computes chunk by chunk."""

# ruff: noqa: TID253 - tests of numerical code import it at the top
import pytest
import torch
from diffusers import AutoencoderKLWan
from training import whole_sequence


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 3, 3], num_res_blocks=1).eval()
    for parameter in model.parameters():  # also the norms' gains, which start at one
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", ["volume", "stack"])
@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_encode_and_decode_equal_the_official_ones(vae, frames, kind, monkeypatch):
    monkeypatch.setitem(whole_sequence.CONVOLUTION, "kind", kind)
    clip = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    official = vae.encode(clip).latent_dist.mode()
    assert torch.allclose(whole_sequence.encode(vae, clip), official, atol=1e-4)
    decoded = whole_sequence.decode(vae, official).clamp(-1, 1)
    assert torch.allclose(decoded, vae.decode(official).sample, atol=1e-4)
