"""Ways to encode a clip, against stock's loop, on the same video: seconds, memory, and how far the latents are off."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from results import tried
from wan_host_wan21.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from subject import Case, Subject

RUNS = 3
BUDGET = 60.0
"""Seconds for all ways; what does not fit is listed as left out."""
EXACT = "stock in full float32"


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to encode: stock's loop, or the plugin's walk in a layout of a device and with or without its kernel."""

    name: str
    layout: str = ""
    """``cpu`` for the weights as they are, ``cuda`` for channels last; empty for stock's loop."""
    fused: bool = False
    tf32: bool = True
    """Convolutions in float32 multiply in TF32, as PyTorch has it by default."""


WAYS = (
    Way(name=EXACT, tf32=False),
    Way(name="stock"),
    Way(name="walk", layout="cpu"),
    Way(name="walk, channels last", layout="cuda"),
    Way(name="walk, channels last, fused norms", layout="cuda", fused=True),
)


def encoders(subject: Subject, case: Case) -> list[dict[str, Any]]:
    """Return a row for each way; one that raises is a row that says so. Errors are relative, against stock and full float32."""
    device = subject.device
    video = torch.rand(1, 3, case.frames, case.height, case.width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    video, expected = video.to(device), dict[str, torch.Tensor]()

    def measure(way: Way, row: dict[str, Any]) -> None:
        vae = copy.deepcopy(subject.pipeline.vae).to(device)
        activate = None
        if way.fused:
            from wan_host_wan21.norms import norm_and_silu as activate  # it needs Triton
        if way.layout:
            Encoder(vae, torch.device(way.layout), activate, lambda: None)
        with torch.no_grad(), _precision(tf32=way.tf32):
            vae.encode(video)  # to warm up
            gc.collect()  # a VAE and the encoder in it know each other
            wait(device)
            subject.forget_peaks()
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            seconds = []
            for _ in range(RUNS if way.tf32 else 1):
                begun = time.perf_counter()
                latents = vae.encode(video).latent_dist.mode()
                wait(device)
                seconds.append(time.perf_counter() - begun)
        expected[way.name] = latents
        row |= {"seconds": round(statistics.median(seconds), 4), "all_seconds": [round(one, 4) for one in seconds]}
        if device.type == "cuda":
            row["peak_gib_beyond_weights"] = round((torch.cuda.max_memory_allocated(device) - held) / 2**30, 2)
        for name in (EXACT, "stock"):
            if name in expected:
                row[f"against {name}"] = float((latents - expected[name]).norm() / expected[name].norm())

    return tried(WAYS, BUDGET, measure)


@contextmanager
def _precision(*, tf32: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
