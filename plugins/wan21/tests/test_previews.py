"""Small pictures of the unfinished clip, near what the VAE would make of it, and without any effect on it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.generation import generate
from wan_host_wan21.previews import Previews
from wan_host_wan21.settings import Wan21Settings


class BlockVae:
    """A VAE whose latents are an invertible mix of every cell's mean colour."""

    dtype = torch.float32
    config = SimpleNamespace(z_dim=16, latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    mix = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))

    def encode(self, video):
        cells = torch.nn.functional.avg_pool2d(video[0, :, 0], 8)
        latents = torch.einsum("zc,chw->zhw", self.mix, cells)[None, :, None]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def test_a_picture_has_the_colours_of_the_clip():
    previews = Previews(BlockVae(), torch.device("cpu"))
    colours = torch.rand(3, 4, 6) * 2 - 1
    latents = torch.einsum("zc,chw->zhw", BlockVae.mix, colours)
    clean = ((latents - 0.5) / 2)[None, :, None].repeat(1, 1, 3, 1, 1)
    picture = previews.picture(SimpleNamespace(model_outputs=[None, clean]))
    assert (picture.shape, picture.dtype) == ((4, 6, 3), np.uint8)
    expected = ((colours.permute(1, 2, 0) + 1) * 127.5).numpy()
    assert np.abs(picture - expected).max() < 2


def test_there_is_none_before_the_solver_knows():
    assert Previews(BlockVae(), torch.device("cpu")).picture(SimpleNamespace(model_outputs=[None, None])) is None


@pytest.mark.parametrize(("total", "count"), [(1, 0), (4, 3), (25, 8), (50, 8)])
def test_about_eight_are_made(total, count):
    previews = Previews(BlockVae(), torch.device("cpu"))
    assert sum(previews.wanted(step, total) for step in range(1, total + 1)) == count


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_they_are_offered_and_change_nothing(solver, vace, video, recorder, monkeypatch):
    context = recorder()
    with_them = generate(video(sample_solver=solver), vace, context)
    assert context.events.count("preview") == 2
    monkeypatch.setattr(vace, "settings", Wan21Settings(previews=False))
    context = recorder()
    without = generate(video(sample_solver=solver), vace, context)
    assert "preview" not in context.events
    assert np.array_equal(with_them.clips[0].frames, without.clips[0].frames)
