"""Stage 1: the autoencoder, on clips that are drawn as it trains.

    python -m training.train_vae --out runs/vae --seconds 360

Single frames first (every convolution is then a plain 2D one), then the lengths that are served, up to 81 frames:
colours drift beyond the longest length seen. Some clips are what VACE feeds the encoder: nothing but gray around a
first or last frame. Noise on the latents teaches the decoder to forgive the transformer.

    python -m training.train_vae --resume MODEL --out runs/vae --decoder --seconds 240

trains the decoder only: latents and their statistics stay as they are, so a transformer trained on them stays valid. The
objects, a few per cent of the pixels and the first to blur, then count more than the ground.
Writes vae.safetensors and vae.json (statistics of the latents, losses, quality by length).
"""

# ruff: noqa: ANN001, D103, D401, FBT001, N812, PLR0917, SLF001 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock
from safetensors.torch import load_file, save_file

from training import whole_sequence
from training.architecture import TINY, Size, build_vae
from training.muon import split
from training.world import covered, render, sample_scenes

# (share of the steps, frames, height, width, clips in a batch). Steps count more than clips do: batches are small.
STILL = ((1.0, 1, 128, 128, 64),)
LENGTHS = (
    (0.56, 17, 128, 128, 8),
    (0.27, 1, 128, 128, 64),
    (0.07, 33, 128, 128, 4),
    (0.05, 81, 128, 128, 2),
    (0.05, 17, 96, 160, 8),
)
QUICK_STILL = ((1.0, 1, 32, 32, 4),)
QUICK = ((0.5, 5, 32, 32, 2), (0.5, 1, 32, 32, 2))
STILL_SHARE = 0.2  # of the time
MATRIX_RATE, OTHER_RATE = 5e-3, 2e-3
LATENT_NOISE = 0.2  # at most, of a channel's standard deviation
POSTERIOR_STD = 0.05  # likewise; what pipelines that sample the posterior add
DECODER_RATE = 0.4  # of these, with --decoder: it starts from what is nearly right
OBJECT_WEIGHT = 8.0  # of a pixel of an object or beside it, with --decoder; the ground's is 1
NEAR = 3  # pixels
SAVE_EVERY = 60.0  # seconds
SEED = 20


def fastest_convolution(device: torch.device, dtype: torch.dtype) -> str:
    """Time both forms of the causal convolution, forward and backward, on the shapes that cost most."""
    took = {}
    for kind in ("volume", "stack"):
        whole_sequence.CONVOLUTION["kind"] = kind
        took[kind] = 0.0
        for channels, side in ((16, 128), (32, 64)):
            convolution = torch.nn.Conv3d(channels, channels, 3).to(device)
            x = torch.randn(16, channels, 17, side, side, device=device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            for repeat in range(5):
                if repeat == 2:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                whole_sequence._causal(convolution, x).float().square().mean().backward()
            torch.cuda.synchronize()
            took[kind] += time.perf_counter() - began
    print("causal convolution:", {k: f"{v / 3 * 1e3:.1f} ms" for k, v in took.items()}, flush=True)
    return min(took, key=took.get)


def start_from_still_frames(vae: torch.nn.Module) -> None:
    """Begin as a linear model of frames.

    Residual branches are silent and what remains keeps lengths, so colours come through from the first steps. Earlier
    taps are silent, too; time is halved by dropping frames and doubled by repeating them.
    """
    coder, blocks = (vae.encoder, vae.decoder), [m for m in vae.modules() if isinstance(m, WanResidualBlock)]
    stream = [m for c in coder for m in (c.conv_in, c.conv_out)] + [vae.quant_conv, vae.post_quant_conv]
    stream += [b.conv_shortcut for b in blocks if isinstance(b.conv_shortcut, torch.nn.Conv3d)]
    with torch.no_grad():
        for block in blocks:
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                torch.nn.init.orthogonal_(module.weight)
                module.bias.zero_()
        for module in stream:
            module.weight[:, :, -1] = torch.nn.init.orthogonal_(module.weight[:, :, -1].clone())
            module.bias.zero_()
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
                module.weight[:, :, :-1] = 0
            if getattr(module, "time_conv", None) is not None:
                weight = module.time_conv.weight
                weight.zero_()
                module.time_conv.bias.zero_()
                for row in range(weight.shape[0]):
                    weight[row, row % weight.shape[1], -1] = 1


def loss_of(
    vae: torch.nn.Module, clip: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, noise: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean squared error) of one reconstruction; clip is float32 and may hold VACE's gray frames.

    weight: what a pixel counts, (batch, 1, frames, height, width) with a mean of 1.
    """
    x = clip.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    mean = whole_sequence.encode(vae, x)
    spread = mean.detach().float().std(dim=(0, 2, 3, 4), keepdim=True).to(dtype)
    level = noise * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device, dtype=dtype)
    out = whole_sequence.decode(vae, mean + torch.randn_like(mean) * level * spread).float()
    error = out - clip
    squared = (error.square() * weight).mean()
    # Edges are few pixels, and what the eye sees: the gradient's error, in space and in time, counts as much again.
    edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    if clip.shape[2] > 1:
        edges = edges + 0.5 * (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    chroma = ((error - error.mean(dim=1, keepdim=True)).abs() * weight).mean()
    loss = (error.abs() * weight).mean() + chroma + 0.5 * edges + 2 * squared + 1e-4 * mean.float().square().mean()
    return loss, error.detach().square().mean()


def training_clips(
    frames: int, height: int, width: int, batch: int, seed: int, device, object_weight: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of drawn clips, and what their pixels count.

    One clip in ten is gray but for its first or last frame or both, as VACE shows references.
    """
    scenes = sample_scenes(batch, seed, two=0.3, wild=0.25)
    clip = render(scenes, frames, height, width, device)
    near = torch.zeros_like(clip[:, :1])
    if object_weight > 1:
        near = F.max_pool3d(covered(scenes, frames, height, width, device), (1, 2 * NEAR + 1, 2 * NEAR + 1), 1, (0, NEAR, NEAR))
    if frames > 1:
        control = batch // 10 + (seed % 10 < batch % 10)
        kept = torch.zeros(control, 1, frames, 1, 1, device=device)
        kinds = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, control)).to(device)
        kept[:, 0, 0, 0, 0] = (kinds != 1).float()
        kept[:, 0, -1, 0, 0] = (kinds != 0).float()
        clip[:control] *= kept
        near[:control] *= kept
    weight = 1 + (object_weight - 1) * near
    return clip, weight / weight.mean()


def start(size: Size, resume: Path | None, decoder_only: bool) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """The autoencoder, and those of its parts that are trained."""
    if decoder_only and not resume:
        raise SystemExit("--decoder: needs --resume, the autoencoder whose encoder stays")
    if resume:
        vae = load(resume, size)
    else:
        vae = build_vae(size)
        start_from_still_frames(vae)
    trained = [vae.decoder, vae.post_quant_conv] if decoder_only else [vae]
    vae.requires_grad_(requires_grad=False)
    for module in trained:
        module.requires_grad_(requires_grad=True)
    return vae, trained


def train(args: argparse.Namespace) -> None:
    size, lengths, still = (TINY, QUICK, QUICK_STILL) if args.quick else (Size(), LENGTHS, STILL)
    device = torch.device(args.device)
    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae, trained = start(size, args.resume, args.decoder)
    # A transformer knows the latents by these; with them, what is saved on the way can be used.
    known = {name: list(vae.config[name]) for name in ("latents_mean", "latents_std")} if args.decoder else {}
    vae.to(device)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = 3
        torch.backends.cuda.matmul.allow_tf32 = True
        whole_sequence.CONVOLUTION["kind"] = fastest_convolution(device, dtype)
        whole_sequence.compile_norms()
    matrices = [p for p in parameters if p.ndim >= 4 and p.shape[0] > 1 and p.shape[1] > 1]
    share, object_weight = (DECODER_RATE, OBJECT_WEIGHT) if args.decoder else (1.0, 1.0)
    parts = split(trained, matrices, MATRIX_RATE * share, OTHER_RATE * share)
    first_rates = [[group["lr"] for group in part.param_groups] for part in parts]
    shares = np.array([row[0] for row in lengths])
    draw = np.random.default_rng(SEED)
    history, step, began, saved = [], 0, time.monotonic(), time.monotonic()
    while (progress := (time.monotonic() - began) / args.seconds) < 1:
        table = still if progress < STILL_SHARE and not args.resume else lengths
        _, frames, height, width, batch = table[draw.choice(len(table), p=shares / shares.sum()) if len(table) > 1 else 0]
        for part, rates in zip(parts, first_rates, strict=True):
            for group, first in zip(part.param_groups, rates, strict=True):
                group["lr"] = first * min(1, (step + 1) / 100) * min(1.0, (1 - progress) / 0.6)
        clip, weight = training_clips(frames, height, width, batch, SEED * 10**7 + step, device, object_weight)
        loss, squared = loss_of(vae, clip, weight, dtype, LATENT_NOISE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for part in parts:
            part.step()
            part.zero_grad(set_to_none=True)
        if step % 50 == 0:  # reading a loss waits for the device, so seldom
            psnr = 10 * math.log10(4 / squared.item())
            history.append((step, time.monotonic() - began, frames, loss.item(), psnr))
            if step % 250 == 0:
                print(f"{step:6d} {history[-1][1]:6.1f} s  {frames:3d} frames  loss {loss.item():.4f}  {psnr:.2f} dB", flush=True)
        if time.monotonic() - saved > SAVE_EVERY:
            save(vae, args.out, known or None)
            saved = time.monotonic()
        step += 1
    torch.backends.cudnn.benchmark = False
    if known:
        save(vae, args.out, known)
    report = {"seconds": args.seconds, "steps": step, "history": history, **measure(vae, lengths, device), **known}
    finish(vae, report)
    save(vae, args.out, report)
    print(json.dumps({k: v for k, v in report.items() if k != "history"}), flush=True)


@torch.no_grad()
def measure(vae: torch.nn.Module, lengths, device: torch.device) -> dict:
    """Statistics of the latents of the commonest length, and PSNR in dB by length, in float32, on fresh clips."""
    report = {"psnr": {}}
    for row, (_, frames, height, width, batch) in enumerate(lengths):
        few = max(2, batch // 4)
        values = []
        for part in range(48 if row == 0 else 4):  # the first row's latents give the statistics
            clip = render(sample_scenes(few, 10**9 + part), frames, height, width, device)
            mean = whole_sequence.encode(vae, clip)
            error = (whole_sequence.decode(vae, mean).clamp(-1, 1) - clip).square().mean(dim=(1, 3, 4))
            values.append(10 * torch.log10(4 / error))
            if row == 0:
                report.setdefault("_latents", []).append(mean)
        psnr = torch.cat(values)  # (clips, frames)
        name = f"{frames}x{height}x{width}"
        report["psnr"][name] = {"median": psnr.median().item(), "first": psnr[:, 0].median().item(),
                                "last": psnr[:, -1].median().item(), "worst": psnr.min().item()}  # fmt: skip
    latents = torch.cat(report.pop("_latents"))
    report["latents_mean"] = latents.mean(dim=(0, 2, 3, 4)).tolist()
    report["latents_std"] = latents.std(dim=(0, 2, 3, 4)).tolist()
    return report


def finish(vae: torch.nn.Module, report: dict) -> None:
    """Write the statistics into the config, and a small constant variance into the posterior (it is not trained)."""
    vae.register_to_config(latents_mean=report["latents_mean"], latents_std=report["latents_std"])
    channels = vae.config.z_dim
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        spread = torch.tensor(report["latents_std"]).clamp_min(1e-3) * POSTERIOR_STD
        vae.quant_conv.bias[channels:] = 2 * spread.log().to(vae.quant_conv.bias.device)


def save(vae: torch.nn.Module, out: Path, report: dict | None = None) -> None:
    """Replace the weights, and the report where there is one; each file is whole at any moment."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, out / "vae.safetensors.next")
    (out / "vae.safetensors.next").replace(out / "vae.safetensors")
    if report is not None:
        (out / "vae.json.next").write_text(json.dumps(report))
        (out / "vae.json.next").replace(out / "vae.json")


def load(folder: Path, size: Size) -> torch.nn.Module:
    """The trained autoencoder, float32, with its statistics: of this stage's output or of an exported checkpoint."""
    if (folder / "vae").is_dir():
        return AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32).eval()
    vae = build_vae(size)
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    finish(vae, json.loads((folder / "vae.json").read_text()))
    return vae.eval()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--resume", type=Path, help="a folder of this stage, or an exported checkpoint, to start from")
    parser.add_argument("--decoder", action="store_true", help="train the decoder only, from --resume")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and tiny clips, to try the stage on a CPU")
    return parser


if __name__ == "__main__":
    train(arguments().parse_args())
