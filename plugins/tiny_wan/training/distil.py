"""Stage 4: a turbo adapter. Four steps without guidance that follow the guided path of the whole model.

    python -m training.distil --model wan_host_tiny_wan/model --out training/runs/turbo.safetensors --seconds 180

The teacher goes from noise to clean latents with guidance in many small steps, and what it passes at the student's few sigmas
is kept. The student, the same weights plus low-rank factors, learns the straight line from each of these points to the
next. At equal noise it must so end where the teacher ends, and guidance is in what it has learned: one pass a step.
A regression on points that are all known beforehand, so it needs no second network and cannot diverge as distribution
matching can; what it gives up is the sharpness that a matched distribution has where the lines are far from straight.

Of the time, a third draws paths, the rest trains. The file says how it is run (``wan_host_turbo`` in its header); as
``turbo.safetensors`` in a model's folder it makes the preset ``turbo`` of that model.
"""

# ruff: noqa: ANN001, ANN204, D102, D103, PLR0915, PLR0917 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from training import whole_sequence
from training.architecture import FLOW_SHIFT, TINY, Size
from training.joint import block_forward, encode_text, patches, velocity
from training.latents import KINDS, QUICK_KINDS, Bucket, Captions, build
from training.train_transformer import Gradients, build_models
from training.train_vae import load as load_vae

HEADER = "wan_host_turbo"
GUIDANCE = 3.0
SMALL_STEPS = 6  # of the teacher, in one of the student's
TEACHER_SHARE = 0.35
SEED = 33
LEFT_OUT = ("9 frames", "33 frames", "81 frames", "still wide")


class LowRank(nn.Module):
    """A weight plus the product of two factors; it starts as the weight."""

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.on = True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down if self.on else weight


def adapt(transformer: nn.Module, rank: int) -> dict[str, LowRank]:
    """Freeze a transformer and give every linear layer of its blocks, VACE's too, a pair of factors; return them by layer."""
    transformer.requires_grad_(requires_grad=False)
    found = {}
    for group in ("blocks", "vace_blocks"):
        for name, layer in getattr(transformer, group).named_modules():
            if isinstance(layer, nn.Linear):
                factors = LowRank(layer.out_features, layer.in_features, rank).to(layer.weight.device)
                found[f"{group}.{name}"] = factors
    for name, factors in found.items():
        parametrize.register_parametrization(transformer.get_submodule(name), "weight", factors)
    return found


def sigmas(steps: int) -> list[float]:
    """Evenly spaced steps from 1 to 0, moved towards noise by the model's shift; steps + 1 values."""
    even = [1 - step / steps for step in range(steps + 1)]
    return [FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s) for s in even]


@dataclass
class Paths:
    """Where the teacher was at the student's sigmas: points (nodes, rows, 16, t, h, w) in half precision."""

    bucket: Bucket
    points: torch.Tensor
    text: torch.Tensor
    rows: torch.Tensor  # the controls of the last rows of every batch
    plain: int


def walk(velocity_at, noise: torch.Tensor, nodes: list[float], small_steps: int) -> list[torch.Tensor]:
    """Follow ``velocity_at(x, sigma)`` from noise through the nodes, with second-order Adams-Bashforth steps between them."""
    x, points, before = noise, [noise], None
    fine = sigmas((len(nodes) - 1) * small_steps)
    for index, (sigma, following) in enumerate(itertools.pairwise(fine)):
        v, h = velocity_at(x, sigma), following - sigma
        x = x + h * (v if before is None else v + (v - before[0]) * (h / (2 * before[1])))
        before = (v, h)
        if (index + 1) % small_steps == 0:
            points.append(x)
    return points


def unpatched(x: torch.Tensor, shape) -> torch.Tensor:
    """Return latents of a shape from what `patches` made of them."""
    batch, channels, frames, height, width = shape
    x = x.view(batch, frames, height // 2, width // 2, channels, 2, 2)
    return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(shape)


class Teacher:
    """Draws guided paths of one bucket's prompts and controls."""

    def __init__(
        self, transformer, text_encoder, bucket: Bucket, nodes: list[float], guidance: float, kind: torch.dtype, forward
    ):
        self.transformer, self.text_encoder, self.bucket = transformer, text_encoder, bucket
        self.nodes, self.guidance, self.kind, self.forward = nodes, guidance, kind, forward

    @torch.no_grad()
    def draw(self, device: torch.device) -> Paths:
        kind = self.bucket.kind
        plain = kind.batch - kind.controlled
        rows = torch.randint(len(self.bucket.ids), (kind.batch,), device=device)
        control = None
        if kind.controlled:
            rows[plain:] = torch.randint(len(self.bucket.inactive), (kind.controlled,), device=device)
            control = self.bucket.control(rows[plain:])
        ids = self.bucket.prompts(rows)
        empty = torch.zeros_like(ids)
        empty[:, 0] = 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text, nothing = (encode_text(self.text_encoder, part).float() for part in (ids, empty))
        shape = (kind.batch, *self.bucket.latents.shape[1:])

        def guided(x: torch.Tensor, sigma: float) -> torch.Tensor:
            timestep = torch.full((kind.batch,), sigma * 1000, device=device)
            said, unsaid = (
                velocity(self.transformer, x, timestep, part, control, self.kind, self.forward) for part in (text, nothing)
            )
            return unpatched(unsaid + self.guidance * (said - unsaid), shape)

        points = walk(guided, torch.randn(shape, device=device), self.nodes, SMALL_STEPS)
        return Paths(self.bucket, torch.stack(points).half(), text, rows[plain:], plain)


def batch_of(paths: Paths, nodes: torch.Tensor) -> dict:
    """One step's rows: each of them at some node, with the line to the next one as its target."""
    count, device = paths.points.shape[1], paths.points.device
    which = torch.randint(len(nodes) - 1, (count,), device=device)
    row = torch.arange(count, device=device)
    here, there = paths.points[which, row].float(), paths.points[which + 1, row].float()
    length = (nodes[which] - nodes[which + 1]).view(-1, 1, 1, 1, 1)
    control = paths.bucket.control(paths.rows) if len(paths.rows) else None
    return {"noisy": here, "target": patches((here - there) / length), "timestep": nodes[which] * 1000, "control": control}


@torch.no_grad()
def distance(transformer, paths: Paths, nodes: list[float], kind: torch.dtype, forward) -> float:
    """How far from the teacher's end the student ends, going its own way from the same noise; relative."""
    control = paths.bucket.control(paths.rows) if len(paths.rows) else None
    x = paths.points[0].float()
    for sigma, following in itertools.pairwise(nodes):
        timestep = torch.full((len(x),), sigma * 1000, device=x.device)
        x = x + (following - sigma) * unpatched(velocity(transformer, x, timestep, paths.text, control, kind, forward), x.shape)
    end = paths.points[-1].float()
    return float((x - end).norm() / end.norm())


def save(out: Path, adapters: dict[str, LowRank], nodes: list[float]) -> None:
    """Write the factors in bfloat16 by diffusers' names, with the way to run them in the header."""
    state = {}
    for name, factors in adapters.items():
        state[f"transformer.{name}.lora_A.weight"] = factors.down.detach().bfloat16().cpu().contiguous()
        state[f"transformer.{name}.lora_B.weight"] = factors.up.detach().bfloat16().cpu().contiguous()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={HEADER: json.dumps({"sampler": "euler", "sigmas": nodes[:-1]})})


def distil(args: argparse.Namespace) -> list[float]:
    """Train; return the distances from the teacher's ends before and after."""
    began = time.monotonic()
    kinds, size = (QUICK_KINDS, TINY) if args.quick else (tuple(k for k in KINDS if k.name not in LEFT_OUT), Size())
    kinds = tuple(
        replace(k, clips=max(k.batch, int(k.clips * args.clips)), clips_with_control=int(k.clips_with_control * args.clips))
        for k in kinds
    )
    captions = Captions(kinds, args.seed)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    torch.manual_seed(args.seed)
    _, transformer, text_encoder = build_models(size, args.model, device)
    text_encoder.eval().requires_grad_(requires_grad=False)
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        whole_sequence.compile_norms()
    vae = load_vae(args.model if args.vae is None else args.vae, size).to(device)
    buckets = [build(kind, index, args.seed, vae, captions.ids(kind), device) for index, kind in enumerate(kinds)]
    captions.close()
    forward = torch.compile(block_forward, dynamic=False) if args.compile else block_forward
    kind = torch.bfloat16 if cuda else torch.float32
    print(f"{len(buckets)} buckets at {time.monotonic() - began:.0f} s", flush=True)

    nodes = sigmas(args.steps)
    fast = {bucket.kind.name: forward if bucket.kind.name == "main" else block_forward for bucket in buckets}
    teachers = [Teacher(transformer, text_encoder, b, nodes, args.guidance, kind, fast[b.kind.name]) for b in buckets]
    drawn, held = {b.kind.name: [] for b in buckets}, {}
    left = args.seconds - (time.monotonic() - began)
    until = time.monotonic() + TEACHER_SHARE * left
    shares = torch.tensor([b.kind.share for b in buckets])
    choose = torch.Generator().manual_seed(args.seed)
    for teacher in teachers:
        held[teacher.bucket.kind.name] = teacher.draw(device)
        drawn[teacher.bucket.kind.name] = [teacher.draw(device), teacher.draw(device)]
    while args.updates is None and time.monotonic() < until:
        teacher = teachers[int(torch.multinomial(shares, 1, generator=choose))]
        drawn[teacher.bucket.kind.name].append(teacher.draw(device))
    counts = {name: len(paths) for name, paths in drawn.items()}
    print(f"batches of paths at {time.monotonic() - began:.0f} s: {counts}", flush=True)

    adapters = adapt(transformer, args.rank)
    parameters = [p for factors in adapters.values() for p in factors.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.0, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters]
    points = torch.tensor(nodes, device=device)
    first = {name: distance(transformer, paths, nodes, kind, fast[name]) for name, paths in held.items()}
    gradients, step, window = {}, 0, []
    begin = time.monotonic()
    seconds = max(1.0, args.seconds - (begin - began))
    while (progress := (time.monotonic() - begin) / seconds if args.updates is None else step / args.updates) < 1:
        name = buckets[int(torch.multinomial(shares, 1, generator=choose))].kind.name
        paths = drawn[name][int(torch.randint(len(drawn[name]), (1,), generator=choose))]
        batch, text = batch_of(paths, points), paths.text.detach().clone().requires_grad_()
        if name not in gradients:
            gradients[name] = Gradients(transformer, batch, text, kind, fast[name])
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 100, 2 * (1 - progress))
        window.append(gradients[name](batch, text).mean())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.998, (1 + step) / (10 + step)))
        step += 1
        if step % args.report == 0:
            print(f"{step:6d} {time.monotonic() - begin:6.1f} s  loss {torch.stack(window).mean():.4f}", flush=True)
            window.clear()
    with torch.no_grad():
        for p, value in zip(parameters, average, strict=True):
            p.copy_(value)
    last = {name: distance(transformer, paths, nodes, kind, fast[name]) for name, paths in held.items()}
    for name in held:
        print(f"{name}: {args.steps} steps end {first[name]:.3f} from the teacher without the adapter, {last[name]:.3f} with it")
    print(f"{step} steps of training in {time.monotonic() - begin:.0f} s, {time.monotonic() - began:.0f} s in all", flush=True)
    save(args.out, adapters, nodes)
    return [first["main"], last["main"]]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with transformer/ and text_encoder/")
    parser.add_argument("--vae", type=Path, help="where the autoencoder is, if not in the same folder")
    parser.add_argument("--out", type=Path, required=True, help="the adapter's file")
    parser.add_argument("--seconds", type=float, default=180, help="in all")
    parser.add_argument(
        "--updates", type=int, help="stop after so many instead of by the clock, on two batches of paths a bucket"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="of the teacher: what the model is run with")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--clips", type=float, default=0.25, help="times the number of clips that stage 2 encodes")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--report", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and tiny clips, to try the stage on a CPU")
    return parser


if __name__ == "__main__":
    distil(arguments().parse_args())
