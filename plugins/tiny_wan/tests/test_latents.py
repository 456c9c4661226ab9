# ruff: noqa: TID253 - tests of numerical code import it at the top
"""The controls that the transformer trains on are those that WanVACEPipeline makes when it serves."""

import pytest
import torch
from diffusers import WanVACEPipeline
from PIL import Image
from training.architecture import TINY, build_scheduler, build_tokenizer, build_transformer, build_vae
from training.latents import PHRASINGS, Bucket, Kind, build
from training.world import render, sample_scenes


@pytest.mark.parametrize("mode", [0, 1, 2])
@torch.no_grad()
def test_controls_equal_the_pipelines(mode):
    torch.manual_seed(0)
    vae = build_vae(TINY).eval()
    kind = Kind("main", 1.0, 3, 3, 9, 32, 48, clips=3, clips_with_control=3)
    bucket = build(kind, 0, 11, vae, torch.zeros(3, 1, 4, dtype=torch.uint8), torch.device("cpu"))
    ours = bucket.control(torch.tensor([mode]))

    clip = render(sample_scenes(3, 11 * 10**6), 9, 32, 48)[mode]
    pictures = [Image.fromarray(((f.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for f in clip.unbind(1)]
    video, mask = [Image.new("RGB", (48, 32), (128,) * 3)] * 9, [Image.new("L", (48, 32), 255)] * 9
    for at, kept in ((0, mode != 1), (-1, mode != 0)):
        if kept:
            video[at], mask[at] = pictures[at], Image.new("L", (48, 32), 0)
    parts = {"tokenizer": build_tokenizer(), "text_encoder": None, "scheduler": build_scheduler()}
    pipeline = WanVACEPipeline(vae=vae, transformer=build_transformer(TINY), **parts)
    shown, hidden, references = pipeline.preprocess_conditions(video, mask, None, 1, 32, 48, 9, torch.float32, "cpu")
    latents = pipeline.prepare_video_latents(shown, hidden, references, None, "cpu")
    theirs = torch.cat([latents, pipeline.prepare_masks(hidden, references)], dim=1)
    assert ours.shape == theirs.shape
    assert torch.equal(ours[:, 32:], theirs[:, 32:])
    assert (ours - theirs).abs().max() < 0.05  # pictures are rounded to 8 bits on their way to the pipeline


def test_phrasings_without_a_subject_go_to_rows_with_a_control_only():
    ids = torch.arange(PHRASINGS + 1, dtype=torch.uint8).view(1, -1, 1).repeat(4, 1, 2)
    bucket = Bucket(Kind("main", 1.0, 1000, 600, 1, 16, 16, 4, 4), torch.zeros(4, 2, 1, 2, 2), ids, None, None)
    torch.manual_seed(0)
    said = bucket.prompts(torch.arange(1000) % 4)
    assert said.shape == (1000, 2)
    plain, controlled = said[:400, 0], said[400:, 0]
    assert set(plain.tolist()) == set(range(PHRASINGS))
    assert 0.2 < controlled.eq(PHRASINGS).float().mean() < 0.3
