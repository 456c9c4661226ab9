"""Every way to decode a clip, against stock's, on the same latents: seconds, memory, and how far its bytes are off."""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253  # a script on torch
from ceilings import wait
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm  # noqa: TID253  # as above
from results import tried
from wan_host_wan21.chunks import DecoderWalk, as_bytes, channels_last, prepared

from wan_host import Clip
from wan_host.context import StageContext
from wan_host.encoding import encode_asset

if TYPE_CHECKING:
    from pathlib import Path

    from subject import Case, Subject

RUNS = 3
BUDGET = 95.0
"""Seconds for all variants; what does not fit is listed as left out."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to decode: stock's loop (``length`` 0) or chunks of so many latent frames, and with what."""

    name: str
    length: int = 0
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tf32: bool = True
    """Convolutions in float32 multiply in TF32, as PyTorch has it by default."""
    benchmark: bool = False
    compiled: str = ""
    """``norms`` or ``chunk``."""
    fused: bool = False
    """Norm and SiLU in one kernel."""
    graph: bool = False
    runs: int = RUNS
    """By the clock, after one to warm up; with 1 that one counts."""


BF16, FP16 = torch.bfloat16, torch.float16
WAYS = (
    Way(name="stock"),
    Way(name="chunks of 1", length=1),
    Way(name="chunks of 1, channels last", length=1, channels_last=True),
    Way(name="chunks of 1, channels last, fused norms", length=1, channels_last=True, fused=True),
    Way(
        name="chunks of 1, channels last, fused norms, cudnn.benchmark", length=1, channels_last=True, fused=True, benchmark=True
    ),
    Way(name="stock, bf16", dtype=BF16),
    Way(name="chunks of 1, channels last, bf16", length=1, channels_last=True, dtype=BF16),
    Way(name="chunks of 1, channels last, bf16, fused norms", length=1, channels_last=True, dtype=BF16, fused=True),
    Way(name="chunks of 4, channels last, bf16, fused norms", length=4, channels_last=True, dtype=BF16, fused=True),
    Way(name="chunks of 1, channels last, fp16, fused norms", length=1, channels_last=True, dtype=FP16, fused=True),
    Way(
        name="chunks of 1, channels last, bf16, fused norms, graph",
        length=1,
        channels_last=True,
        dtype=BF16,
        fused=True,
        graph=True,
    ),
    Way(
        name="chunks of 1, channels last, bf16, fused norms, cudnn.benchmark",
        length=1,
        channels_last=True,
        dtype=BF16,
        fused=True,
        benchmark=True,
    ),
    Way(name="chunks of 1, channels last, bf16, compiled chunk", length=1, channels_last=True, dtype=BF16, compiled="chunk"),
    Way(name="chunks of 1, channels last, compiled chunk", length=1, channels_last=True, compiled="chunk"),
    Way(
        name="chunks of 4, channels last, fused norms, cudnn.benchmark", length=4, channels_last=True, fused=True, benchmark=True
    ),
    Way(name="chunks of 4, channels last, fused norms", length=4, channels_last=True, fused=True),
    Way(name="chunks of 1, cudnn.benchmark", length=1, benchmark=True),
    Way(name="stock in full float32", tf32=False, runs=1),
    Way(name="stock, channels last, compiled norms", channels_last=True, compiled="norms"),
)


def decoders(subject: Subject, case: Case) -> list[dict[str, Any]]:
    """Return a row for each way; one that raises is a row that says so. Errors are in grey levels against stock's bytes."""
    vae = subject.pipeline.vae
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(1, vae.config.z_dim, *case.latent, generator=source).to(subject.device)
    expected: dict[str, np.ndarray] = {}

    def measure(way: Way, row: dict[str, Any]) -> None:
        torch.cuda.empty_cache()
        with torch.no_grad(), _switches(way):
            row |= _measured(way, vae, latents, subject.model.processor, expected)

    rows = tried(WAYS, BUDGET, measure)
    torch.cuda.empty_cache()
    return rows


def handover(subject: Subject, case: Case, folder: Path) -> dict[str, Any]:
    """Return the seconds from latents to an MP4, the encoder beginning after the last frame or with the first."""
    decoder, vae = subject.model.decoder, subject.components.vae
    latents = torch.randn(1, vae.config.z_dim, *case.latent, generator=torch.Generator().manual_seed(0)).to(subject.device)
    made: dict[str, Any] = {"decode": [], "encode": [], "overlapped": []}
    context = StageContext(job_id="", user_id="", workdir=folder, deadline=time.monotonic() + BUDGET)
    for _ in range(RUNS + 1):
        whole = Handed((case.frames, case.height, case.width, 3))
        with torch.no_grad():
            begun = time.perf_counter()
            decoder.decode(latents, lambda: whole.frames, lambda _: None)  # noqa: B023  # called at once
            made["decode"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            first = whole.encode(context, ready=None)
            made["encode"].append(time.perf_counter() - begun)
            whole = Handed(whole.frames.shape)
            begun = time.perf_counter()
            with ThreadPoolExecutor(1) as threads:
                file = threads.submit(whole.encode, context, whole.wait)
                try:
                    decoder.decode(latents, lambda: whole.frames, whole.grow)  # noqa: B023  # as above
                finally:
                    whole.grow(case.frames)  # the thread is waited for, whatever happens
                second = file.result()
            made["overlapped"].append(time.perf_counter() - begun)
        decoder.reset()
        made["same_bytes"] = made.get("same_bytes", True) and first == second
    return made | {name: statistics.median(made[name][1:]) for name in ("decode", "encode", "overlapped")}


class Handed:
    """A clip that is encoded by the host's encoder while it is decoded, as in a worker, but in one process."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin with no frame."""
        self.frames = np.zeros(shape, np.uint8)
        self._count, self._changed = 0, threading.Condition()

    def grow(self, count: int) -> None:
        """Say how many frames are final."""
        with self._changed:
            self._count = count
            self._changed.notify()

    def wait(self, number: int, _context: object) -> None:
        """Wait for a frame."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > number)

    def encode(self, context: StageContext, ready: Callable[[int, Any], None] | None) -> bytes:
        """Return the file."""
        clip = Clip(frames=self.frames, seed=0)
        workdir = context.workdir
        made = encode_asset(clip, asset_index=0, kind="video", fps=16, workdir=workdir, context=context, ready=ready)
        return made.path.read_bytes()


def _measured(way: Way, stock: Any, latents: torch.Tensor, processor: Any, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """Decode once to warm up, and then by the clock."""
    encoder, stock.encoder = stock.encoder, None
    try:
        vae = copy.deepcopy(stock).to(latents.device, way.dtype)
    finally:
        stock.encoder = encoder
    if way.channels_last:
        channels_last(vae)
    for module in vae.decoder.modules() if way.compiled == "norms" else ():
        if isinstance(module, WanRMS_norm):  # the blocks keep lists between chunks: each place in one would be compiled anew
            module.compile(dynamic=False)
    make = _stock(vae, latents, processor) if way.length == 0 else _chunked(way, vae, latents)
    begun = time.perf_counter()
    frames = make()
    first = time.perf_counter() - begun
    expected.setdefault("stock", frames)
    torch.cuda.empty_cache()
    wait(latents.device)
    torch.cuda.reset_peak_memory_stats(latents.device)
    held = torch.cuda.memory_allocated(latents.device)
    seconds = [first] if way.runs == 1 else []
    for _ in range(way.runs if way.runs > 1 else 0):
        begun = time.perf_counter()
        frames = make()
        seconds.append(time.perf_counter() - begun)
    if not way.tf32:
        expected["float32"] = frames
    row = {
        "first_seconds": round(first, 3),
        "seconds": round(statistics.median(seconds), 4),
        "all_seconds": [round(one, 4) for one in seconds],
        "peak_gib_beyond_weights": round((torch.cuda.max_memory_allocated(latents.device) - held) / 2**30, 2),
        "against_stock": _error(frames, expected["stock"]),
    }
    if "float32" in expected:
        row["against_float32"] = _error(frames, expected["float32"])
    return row


def _stock(vae: Any, latents: torch.Tensor, processor: Any) -> Callable[[], np.ndarray]:
    """Decode as the end of WanPipeline.__call__ does (pipeline_wan.py:655), to bytes as its ``pil`` output has them."""
    shape = (1, vae.config.z_dim, 1, 1, 1)

    def make() -> np.ndarray:
        normal = latents.to(vae.dtype)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(normal.device, normal.dtype)
        std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(normal.device, normal.dtype)
        video = vae.decode(normal / std + mean, return_dict=False)[0].float()
        frames = processor.postprocess_video(video, output_type="pt")[0]
        made: np.ndarray = (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return made

    return make


def _chunked(way: Way, vae: Any, latents: torch.Tensor) -> Callable[[], np.ndarray]:
    activate = None
    if way.fused:
        from wan_host_wan21.norms import norm_and_silu as activate  # it needs Triton
    walk = DecoderWalk(vae.decoder, activate)
    layout = torch.channels_last_3d if way.channels_last else torch.contiguous_format
    rest: Callable[[Any], Any] = walk.rest
    if way.compiled == "chunk":
        rest = torch.compile(walk.rest, dynamic=False, fullgraph=True)
    if way.graph:
        rest = _Graphed(walk)

    def make() -> np.ndarray:
        behind = prepared(vae, latents).contiguous(memory_format=layout)
        size = (1 + 4 * (latents.shape[2] - 1), 8 * latents.shape[3], 8 * latents.shape[4], 3)
        frames, at = torch.empty(size, dtype=torch.uint8, pin_memory=True), 0
        for chunk in _chunks(walk, behind, way.length, rest):
            frames[at : at + len(chunk)].copy_(chunk, non_blocking=True)
            at += len(chunk)
        wait(latents.device)
        return frames.numpy()

    return make


def _chunks(walk: DecoderWalk, behind: torch.Tensor, length: int, rest: Callable[[Any], Any]) -> Iterator[torch.Tensor]:
    """Yield a clip's chunks as bytes, of ``length`` latent frames after the first; ``rest`` makes those of that length."""
    walk.begin()
    yield as_bytes(walk.first(behind[:, :, :1]))
    for start in range(1, behind.shape[2], length):
        chunk = behind[:, :, start : start + length]
        yield as_bytes((rest if chunk.shape[2] == length else walk.rest)(chunk))


class _Graphed:
    """A chunk as a CUDA graph, captured at its second call: the first makes what the libraries make once."""

    def __init__(self, walk: DecoderWalk) -> None:
        self._walk, self._calls = walk, 0
        self._graph = torch.cuda.CUDAGraph()

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        if self._calls == 1:
            return self._walk.rest(latents)
        if self._calls == 2:  # noqa: PLR2004  # the second
            self._latents = latents.clone()
            with torch.cuda.graph(self._graph):
                self._made = self._walk.rest(self._latents)
        self._latents.copy_(latents)
        self._graph.replay()
        return self._made


def _error(frames: np.ndarray, expected: np.ndarray) -> dict[str, float | None]:
    """Return the largest and the mean difference in grey levels, the PSNR in dB (None for equal bytes), and the clip's spread."""
    squares = largest = total = 0.0
    for one, other in zip(frames, expected, strict=True):
        off = np.abs(one.astype(np.int16) - other.astype(np.int16))
        largest = max(largest, float(off.max()))
        total += float(off.mean())
        squares += float((off.astype(np.float32) ** 2).mean())
    square = squares / len(frames)
    psnr = None if square == 0 else round(float(10 * np.log10(255**2 / square)), 2)
    return {
        "largest": largest,
        "mean": round(total / len(frames), 5),
        "psnr_db": psnr,
        "spread": round(float(expected[-1].std()), 2),
    }


@contextmanager
def _switches(way: Way) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = way.tf32, way.benchmark
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001  # one for each shape of a norm
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
