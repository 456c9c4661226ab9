# ruff: noqa: TID253 - tests of numerical code import it at the top
"""The shipped checkpoint loads as any Wan does, keeps within its size, and listens to its prompt."""

from pathlib import Path

import pytest
import torch
from wan_host_tiny_wan import list_models
from wan_host_wan21.turbo import read_turbo

MODEL = Path(__file__).resolve().parents[1] / "wan_host_tiny_wan/model"
pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="no checkpoint in this tree")


def test_it_stays_small():
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 32_000_000
    assert max(f.stat().st_size for f in files) <= 15_000_000


def test_it_offers_every_preset():
    assert set(list_models()[0].presets) == {"exact", "fast", "turbo"}
    assert len(read_turbo(MODEL / "turbo.safetensors").sigmas) == 4


@torch.no_grad()
def test_it_loads_with_the_official_classes_and_a_prompt_changes_the_result():
    from diffusers import WanVACEPipeline

    pipeline = WanVACEPipeline.from_pretrained(MODEL, dtype=torch.float32)
    assert pipeline.text_encoder.shared.weight is pipeline.text_encoder.encoder.embed_tokens.weight
    pipeline.set_progress_bar_config(disable=True)
    red, again, blue = (
        pipeline(
            prompt=prompt, height=64, width=64, num_frames=1, num_inference_steps=2, guidance_scale=4.0,
            conditioning_scale=0.0, output_type="latent", generator=torch.Generator().manual_seed(0),
        ).frames
        for prompt in ("a red circle", "a red circle", "a blue star")
    )  # fmt: skip
    assert torch.equal(red, again)
    assert (red - blue).abs().mean() > 0.05
