"""Fine-tune an exported checkpoint on clips of your own: a LoRA on the attention, folded into the weights in the end.

    python -m training.finetune --model wan_host_tiny_wan/model --clips my-clips --out my-wan --steps 100

``my-clips`` holds ``NAME.mp4`` (or ``.png``) and ``NAME.txt``, the caption. All clips have the same size. The result is a folder
as the official pipelines load it. Rectified flow, as in stage 2: the model sees (1 - s) data + s noise and predicts noise - data,
s shifted towards noise. Only the text-to-video part is trained: VACE's blocks stay as they are.
"""

# ruff: noqa: D103 - a script
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanVACEPipeline
from peft import LoraConfig, get_peft_model

from training.architecture import FLOW_SHIFT, SHARD
from wan_host.testing.media import read_frames

LAYERS = r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
TOKENS = 512  # as many as Wan attends to, most of them zeros
SEED = 5


def read_clips(folder: Path) -> list[tuple[torch.Tensor, str]]:
    """Return clips (3, frames, height, width) in -1..1 with their captions."""
    clips = []
    for caption in sorted(folder.glob("*.txt")):
        media = next((path for path in (caption.with_suffix(".mp4"), caption.with_suffix(".png")) if path.exists()), None)
        if media is None:
            raise SystemExit(f"{caption}: there is no {caption.stem}.mp4 and no {caption.stem}.png beside it")
        frames = torch.from_numpy(read_frames(media).astype(np.float32) / 127.5 - 1)
        clips.append((frames.permute(3, 0, 1, 2), caption.read_text("utf-8").strip()))
    if not clips:
        raise SystemExit(f"{folder}: there are no captions (NAME.txt beside NAME.mp4) in it")
    return clips


@torch.no_grad()
def encode(pipeline: WanVACEPipeline, clips: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised latents (clips, 16, t, h, w) and text embeddings (clips, 512, channels)."""
    config = pipeline.vae.config
    mean, deviation = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    latents = torch.cat([pipeline.vae.encode(clip[None]).latent_dist.mode() for clip, _ in clips])
    texts = [pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=TOKENS)[0] for _, text in clips]
    return (latents - mean) / deviation, torch.cat(texts)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    pipeline = WanVACEPipeline.from_pretrained(args.model, dtype=torch.float32)
    latents, texts = encode(pipeline, read_clips(args.clips))
    tuned = get_peft_model(pipeline.transformer, LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LAYERS))
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, weight_decay=0.0)
    blocks = len(pipeline.transformer.config.vace_layers)
    batch = min(args.batch, len(latents))
    began, losses = time.monotonic(), []
    for step in range(1, args.steps + 1):
        rows = torch.randperm(len(latents))[:batch]
        data, noise = latents[rows], torch.randn(batch, *latents.shape[1:])
        s = (torch.arange(batch) + torch.rand(batch)) / batch
        s = FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s)
        mixed = torch.lerp(data, noise, s.view(-1, 1, 1, 1, 1))
        predicted = tuned(
            hidden_states=mixed,
            timestep=s * 1000,
            encoder_hidden_states=texts[rows],
            control_hidden_states=torch.zeros(batch, pipeline.transformer.config.vace_in_channels, *mixed.shape[2:]),
            control_hidden_states_scale=torch.zeros(blocks),
            return_dict=False,
        )[0]
        loss = torch.nn.functional.mse_loss(predicted, noise - data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0 or step == args.steps:
            print(f"step {step}: loss {np.mean(losses[-20:]):.4f}, {(time.monotonic() - began) / step:.2f} s a step", flush=True)
    pipeline.transformer = tuned.merge_and_unload()
    pipeline.to(torch.bfloat16).save_pretrained(args.out, max_shard_size=SHARD)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint to start from")
    parser.add_argument("--clips", type=Path, required=True, help="a folder of NAME.mp4 and NAME.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    train(parser.parse_args())
