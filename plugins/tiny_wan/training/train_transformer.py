"""Stage 2: the T2V transformer, its VACE blocks and the text encoder, together, on the latents of stage 1.

    python -m training.train_transformer --vae runs/vae --out runs/transformer --seconds 1000

Rectified flow: the model sees (1 - s) data + s noise and predicts noise - data; s is uniform, then shifted by 3 towards
noise. Every batch has plain rows and rows with a VACE control; one caption in ten is empty, for guidance. The learning
rate is constant, then falls to nothing by the clock. Saves the moving average in bfloat16, every minute.
"""

# ruff: noqa: ANN001, ANN204, ARG002, C901, D102, D103, PLR0912, PLR0915, PLR0917 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import WanVACETransformer3DModel
from safetensors.torch import load_file
from transformers import T5TokenizerFast, UMT5EncoderModel

from training import whole_sequence
from training.architecture import FLOW_SHIFT, SHARD, TINY, Size, build_text_encoder, build_tokenizer, build_transformer
from training.joint import block_forward, encode_text, patches, velocity
from training.latents import KINDS, QUICK_KINDS, Bucket, Captions, build
from training.muon import split
from training.train_vae import load as load_vae

EMPTY_SHARE, STRANGE_SHARE = 0.10, 0.015
MATRIX_RATE, OTHER_RATE = 4e-3, 1e-3
WARM_UP, FALL_FROM = 200, 0.35
MOST_LOST = 20
SEED = 21


def draw_batch(bucket: Bucket, device: torch.device) -> dict[str, torch.Tensor]:
    """Noisy latents, targets and conditions of one step. The controlled rows come last."""
    kind = bucket.kind
    plain = kind.batch - kind.controlled
    rows = torch.randint(len(bucket.latents), (kind.batch,), device=device)
    control = None
    if kind.controlled:
        rows[plain:] = torch.randint(len(bucket.inactive), (kind.controlled,), device=device)
        control = bucket.control(rows[plain:])
    data = bucket.latents[rows].float()
    ids = bucket.prompts(rows)
    draws = torch.rand(kind.batch, 1, device=device)
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    ids = torch.where(draws < EMPTY_SHARE, empty, ids)
    # Prompts without a known word ("▁" and "<unk>" in turn) say nothing, too.
    strange = torch.where(torch.arange(ids.shape[1], device=device) % 2 == 0, 3, 2).expand_as(ids)
    length = torch.randint(2, 40, (kind.batch, 1), device=device)
    places = torch.arange(ids.shape[1], device=device)
    strange = torch.where(places < length, strange, (places == length).long())
    ids = torch.where(draws > 1 - STRANGE_SHARE, strange, ids)

    # One draw in each of `batch` strata: the loss of a step then depends less on luck.
    strata = torch.randperm(kind.batch, device=device)
    u = (strata + torch.rand(kind.batch, device=device)) / kind.batch
    sigma = FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)
    noise = torch.randn_like(data)
    s = sigma.view(-1, 1, 1, 1, 1)
    return {
        "noisy": (1 - s) * data + s * noise,
        "target": patches(noise - data),
        "timestep": sigma * 1000,
        "ids": ids,
        "control": control,
    }


class Gradients:
    """Forward and backward of one bucket's batches, as one CUDA graph where there is CUDA.

    A step is some two thousand small launches, which can take the CPU longer than their work takes the GPU. The text
    encoder stays outside: it gets the gradient of its output. All graphs share one memory pool, as one runs at a time.
    """

    _side = _pool = None

    def __init__(self, transformer, batch: dict, text: torch.Tensor, kind: torch.dtype, forward):
        self.transformer, self.kind, self.forward = transformer, kind, forward
        self.inputs = {k: v.clone() for k, v in batch.items() if k != "ids" and v is not None}
        self.text = text.detach().clone().requires_grad_()
        self.parameters = list(transformer.parameters())
        self.graph = None
        if text.is_cuda:
            try:
                self._capture()
            except RuntimeError as error:
                print(f"no CUDA graph: {error}", flush=True)
                self.graph = None
            self._forget()

    def _capture(self) -> None:
        cls = type(self)
        cls._side = cls._side or torch.cuda.Stream()
        cls._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(cls._side):
            for _ in range(2):
                self._forget()
                self._compute()
        torch.cuda.synchronize()
        self._forget()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=cls._pool, stream=cls._side):
            self.errors = self._compute()
        cls._pool = cls._pool or graph.pool()
        self.graph, self.found = graph, [p.grad for p in self.parameters]
        self.text_gradient = self.text.grad

    def _forget(self) -> None:
        self.text.grad = None
        for p in self.parameters:
            p.grad = None

    def _compute(self) -> torch.Tensor:
        given = self.inputs
        out = velocity(
            self.transformer, given["noisy"], given["timestep"], self.text, given.get("control"), self.kind, self.forward
        )
        errors = (out - given["target"]).square().mean(dim=(1, 2))
        errors.mean().backward()
        return errors.detach()

    def __call__(self, batch: dict, text: torch.Tensor) -> torch.Tensor:
        """Leave the gradients in the parameters, the text encoder's too; return each row's error."""
        for name, static in self.inputs.items():
            static.copy_(batch[name])
        with torch.no_grad():
            self.text.copy_(text)
        if self.graph is None:
            self._forget()
            self.errors = self._compute()
        else:
            self.graph.replay()
            for p, found in zip(self.parameters, self.found, strict=True):
                p.grad = found
        text.backward(self.text.grad if self.graph is None else self.text_gradient)
        return self.errors


def rate(step: int, progress: float, fall_from: float) -> float:
    """Return the share of the full learning rate: it rises at first, and falls to nothing after ``fall_from`` of the time."""
    falling = 1.0 if progress <= fall_from else (1 - progress) / (1 - fall_from)
    return min(1, (step + 1) / WARM_UP) * falling


class Average:
    """An exponential moving average of the weights, that forgets fast at first."""

    def __init__(self, modules, decay: float = 0.999):
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        torch._foreach_lerp_(self.mean, self.live, 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def save(self, out: Path, transformer, text_encoder, size: Size, vocabulary_size: int) -> None:
        """Write the averaged modules in bfloat16 as diffusers and transformers save them."""
        copies = build_transformer(size), build_text_encoder(size, vocabulary_size)
        for p, value in zip([p for m in copies for p in m.parameters()], self.mean, strict=True):
            p.copy_(value)
        copies[0].to(torch.bfloat16).save_pretrained(out / "transformer", max_shard_size=SHARD)
        copies[1].to(torch.bfloat16).save_pretrained(out / "text_encoder")


def resume_from(folder: Path, transformer, text_encoder) -> None:
    """Start from a checkpoint's weights; the optimizers start anew."""
    state = {}
    for part in (folder / "transformer").glob("*.safetensors"):
        state |= load_file(part)
    transformer.load_state_dict(state)
    text_encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"), strict=False)


def build_models(
    size: Size, weights: Path | None, device: torch.device
) -> tuple[T5TokenizerFast, WanVACETransformer3DModel, UMT5EncoderModel]:
    """Build the tokenizer, and transformer and text encoder on a device, with a checkpoint's weights where there is one.

    cuDNN's attention is off from then on: with a mask, as the text has one, and 320 tokens, as a clip has, its backward pass
    makes NaN of logits far below zero (https://github.com/pytorch/pytorch/issues/196678), here in up to one step of seventy.
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    tokenizer = build_tokenizer()
    transformer = build_transformer(size).to(device)
    text_encoder = build_text_encoder(size, len(tokenizer)).to(device)
    if weights is not None:
        resume_from(weights, transformer, text_encoder)
    return tokenizer, transformer, text_encoder


def train(args: argparse.Namespace) -> None:
    started = time.monotonic()
    kinds, size = (QUICK_KINDS, TINY) if args.quick else (KINDS, Size())
    if args.clips != 1:
        kinds = tuple(
            replace(k, clips=int(k.clips * args.clips), clips_with_control=int(k.clips_with_control * args.clips)) for k in kinds
        )
    captions = Captions(kinds, args.seed)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    torch.manual_seed(args.seed)
    tokenizer, transformer, text_encoder = build_models(size, args.resume, device)
    text_encoder.train()
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        whole_sequence.compile_norms()

    vae = load_vae(args.vae, size).to(device)
    buckets = []
    for index, kind in enumerate(kinds):
        buckets.append(build(kind, index, args.seed, vae, captions.ids(kind), device))
        print(f"{kind.name}: {len(buckets[-1].latents)} clips at {time.monotonic() - started:.1f} s", flush=True)
    captions.close()
    forward = block_forward
    if args.compile:
        forward = torch.compile(block_forward, dynamic=False)
    kind = torch.bfloat16 if cuda else torch.float32

    average = Average((transformer, text_encoder))
    matrices = [p for b in (*transformer.blocks, *transformer.vace_blocks) for p in b.parameters() if p.ndim == 2]
    parts = split((transformer, text_encoder), matrices, args.matrix_rate, args.other_rate)
    first_rates = [[group["lr"] for group in part.param_groups] for part in parts]
    everything = [*transformer.parameters(), *text_encoder.parameters()]
    shares = np.array([kind.share for kind in kinds])
    choose = np.random.default_rng(args.seed)
    history, window, step, lost, steps_of = [], [], 0, 0, {}
    began = saved = time.monotonic()
    seconds = args.seconds - (began - started)
    while (progress := (time.monotonic() - began) / seconds) < 1:
        bucket = buckets[choose.choice(len(buckets), p=shares / shares.sum())] if step else buckets[0]
        batch = draw_batch(bucket, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            text = encode_text(text_encoder, batch["ids"]).float()
        name = bucket.kind.name
        if name not in steps_of:
            now = time.monotonic()
            steps_of[name] = Gradients(transformer, batch, text, kind, forward if name == "main" else block_forward)
            print(f"{name}: ready in {time.monotonic() - now:.1f} s", flush=True)
        for part, rates in zip(parts, first_rates, strict=True):
            for group, first in zip(part.param_groups, rates, strict=True):
                group["lr"] = first * rate(step, progress, args.fall_from)
        errors = steps_of[name](batch, text)
        usable = bool(torch.nn.utils.clip_grad_norm_(everything, 1.0).isfinite())
        if not usable:
            lost += 1
            print(f"{step:6d} no finite gradients ({lost}): the weights stay as they are", flush=True)
            if lost > MOST_LOST:
                raise SystemExit("the loss is no number any more")
        for part in parts:
            if usable:
                part.step()
            part.zero_grad(set_to_none=True)
        if not usable:
            continue
        average.update()
        if bucket.kind.name == "main":
            plain = bucket.kind.batch - bucket.kind.controlled
            window.append(torch.stack([errors[:plain].mean(), errors[plain:].mean()]))
        if step % 100 == 0 and window:
            mean = torch.stack(window).mean(0).tolist()
            window.clear()
            history.append((step, time.monotonic() - began, *mean))
            if step % args.report == 0:
                print(f"{step:6d} {history[-1][1]:6.1f} s  plain {mean[0]:.4f}  controlled {mean[1]:.4f}", flush=True)
        step += 1
        if time.monotonic() - saved > args.save_every:
            save(args.out, average, transformer, text_encoder, size, len(tokenizer), history, step)
            saved = time.monotonic()
    save(args.out, average, transformer, text_encoder, size, len(tokenizer), history, step)
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else ""
    print(f"{step} steps in {time.monotonic() - began:.0f} s{peak}", flush=True)


def save(out: Path, average: Average, transformer, text_encoder, size: Size, words: int, history, step: int) -> None:
    """Write everything to a folder of its own, then put it in its place: a save that breaks off leaves the one before."""
    following = out / "next"
    shutil.rmtree(following, ignore_errors=True)
    following.mkdir(parents=True)
    average.save(following, transformer, text_encoder, size, words)
    (following / "transformer.json").write_text(json.dumps({"steps": step, "history": history}))
    for name in ("transformer", "text_encoder"):
        if (out / name).exists():
            (out / name).rename(following / f"{name} before")
        (following / name).rename(out / name)
    (following / "transformer.json").replace(out / "transformer.json")
    shutil.rmtree(following)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1000, help="in all, with the encoding of the clips")
    parser.add_argument("--resume", type=Path, help="a folder with transformer/ and text_encoder/ to start from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--matrix-rate", type=float, default=MATRIX_RATE)
    parser.add_argument("--other-rate", type=float, default=OTHER_RATE)
    parser.add_argument("--fall-from", type=float, default=FALL_FROM, help="1: never, for a part that another one goes on from")
    parser.add_argument("--clips", type=float, default=1.0, help="times the number of clips, for a short trial")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--save-every", type=float, default=60)
    parser.add_argument("--report", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and tiny clips, to try the stage on a CPU")
    train(parser.parse_args())
