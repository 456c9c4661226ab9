"""What a job needs of a device's memory under each placement, and which jobs fit.

What decoding takes was measured. What denoising needs beyond the weights is an estimate from the tensors that are alive in one
block; it stays below the decoder up to about two hundred frames, so that the decoder decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from wan_host_wan21.sampling import generated_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIB = 2**30
_VAE_BYTES_PER_PIXEL = 19_500
"""For the real width of 96: what an H200's allocator reserved (`benchmarks/gpu`, 81 frames of 480x832, text_off, fused norms:
10.36 GiB) less its weights. 9,500 of them are past frames of the decoder's convolutions. Encoding the frames of a control
took 11,000 (`--look encoders`), and the clip once beside."""
_SIDE = 16
_PATCH = 2
_LATENT = 8


class Placement(StrEnum):
    """Where weights are. ``fp8`` rounds them; the others compute with the same ones."""

    RESIDENT = "resident"
    """Everything on the device."""
    TEXT_OFF = "text_off"
    """The text encoder rests in the host's memory: its blocks come to the device for their own pass, two at a time."""
    LEAN = "lean"
    """The transformer's blocks too."""
    FP8 = "fp8"
    """Like TEXT_OFF, with the transformer's weights stored in 8 bits: it changes results, so only a setting chooses it."""


LADDER = (Placement.RESIDENT, Placement.TEXT_OFF, Placement.LEAN)
STILL = frozenset({Placement.RESIDENT, Placement.TEXT_OFF})
"""Placements under which the transformer's weights stay where they are."""
_SLOTS = 2
"""Blocks on the device at a time, of those that come for their own pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of the loaded modules, and the shape of the transformer. ``*_block`` is the largest block."""

    transformer: int
    transformer_blocks: int
    transformer_block: int
    text_encoder: int
    text_blocks: int
    text_block: int
    vae: int
    width: int
    ffn_width: int
    vae_base: int


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Job:
    """What of a request takes memory."""

    frames: int
    width: int
    height: int
    rounded: bool = False
    """Whether the blocks' linear layers also stand on the device in 8 bits, for the presets that run them."""

    @property
    def tokens(self) -> int:
        """Length of the transformer's sequence."""
        return ((generated_frames(self.frames) - 1) // 4 + 1) * self.tokens_of_a_frame

    @property
    def tokens_of_a_frame(self) -> int:
        """Of one latent frame."""
        return (self.width // (_LATENT * _PATCH)) * (self.height // (_LATENT * _PATCH))


def ladder(job: Job) -> tuple[Placement, ...]:
    """Return the placements that a job may have, fastest first.

    The text encoder, three quarters of all weights, stays on the device for images alone: beside a video it would save a few
    tenths of a second for each new prompt.
    """
    return LADDER if job.frames == 1 else LADDER[1:]


def needed_bytes(placement: Placement, weights: Weights, job: Job) -> int:
    """Return the peak of a job: its worst phase (text encoder, denoising, VAE)."""
    denoise, decode = _denoise_bytes(weights, job), _vae_bytes(weights, job)
    if job.rounded and placement in STILL:
        denoise, decode = (phase + weights.transformer_blocks // 2 for phase in (denoise, decode))
    if placement is Placement.RESIDENT:
        return weights.transformer + weights.text_encoder + weights.vae + max(denoise, decode)
    text = _SLOTS * weights.text_block
    if placement is Placement.LEAN:
        outer = weights.transformer - weights.transformer_blocks + weights.vae
        return outer + max(text, _SLOTS * weights.transformer_block + denoise, decode)
    transformer = weights.transformer // (2 if placement is Placement.FP8 else 1)
    return transformer + weights.vae + max(text, denoise, decode)


def choose(allowed: tuple[Placement, ...], weights: Weights, job: Job, budget: int) -> Placement | None:
    """Return the first of ``allowed`` placements that fits, or None."""
    return next((placement for placement in allowed if needed_bytes(placement, weights, job) <= budget), None)


def refusal(weights: Weights, job: Job, budget: int, placement: Placement) -> str:
    """Say what a job needs, and the largest frames and size that would fit under the leanest ``placement``."""
    needed = needed_bytes(placement, weights, job)
    frames = max((smaller.frames for smaller in _shorter(job) if needed_bytes(placement, weights, smaller) <= budget), default=0)
    size = next((smaller for smaller in _narrower(job) if needed_bytes(placement, weights, smaller) <= budget), None)
    options = []
    if frames:
        options.append(f"{frames} frames at {job.width}x{job.height}")
    if size is not None:
        options.append(f"{size.width}x{size.height} for {job.frames} frames")
    largest = " or ".join(options) if options else "nothing of this shape"
    asked = f"{job.frames} frames at {job.width}x{job.height} need about {needed / _GIB:.1f} GiB"
    return f"{asked} and {budget / _GIB:.1f} GiB are there; the largest that fits is {largest}"


def _shorter(job: Job) -> Iterator[Job]:
    for frames in range(job.frames - 1, 0, -1):
        yield replace(job, frames=frames)


def _narrower(job: Job) -> Iterator[Job]:
    """Give smaller sizes of about the same aspect, largest first."""
    long = max(job.width, job.height)
    for side in range(long - _SIDE, 0, -_SIDE):
        width, height = (max(_SIDE, round(edge * side / long / _SIDE) * _SIDE) for edge in (job.width, job.height))
        yield replace(job, width=width, height=height)


def _denoise_bytes(weights: Weights, job: Job) -> int:
    """Tensors alive in a block: a dozen of the stream's width in bfloat16, six in float32 for norms, two of the ffn's."""
    return job.tokens * (weights.width * (12 * 2 + 6 * 4) + weights.ffn_width * 2 * 2)


def _vae_bytes(weights: Weights, job: Job) -> int:
    """Return what one chunk of frames takes in the VAE; finished ones leave the device."""
    return job.width * job.height * _VAE_BYTES_PER_PIXEL * weights.vae_base // 96
