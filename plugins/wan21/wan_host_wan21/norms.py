"""The VAE's norm and the SiLU behind it in one kernel, which reads and writes every value once.

In the layers as they are each of their steps reads and writes the memory. Imported where there is Triton: with CUDA.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch  # noqa: TID253  # this module is imported with a loaded model
import triton
import triton.language as tl

_BLOCK = 4096
"""Values in a program: so many pixels with all their channels."""
_WARPS = 8


@triton.jit
def _norm_and_silu(given, weight, made, pixels, scale, channels, width: tl.constexpr, block: tl.constexpr):  # noqa: ANN001, ANN202, PLR0917  # a kernel
    """Compute, for some pixels, silu(x / |x| * scale * weight), the length being over the channels."""
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    channel = tl.arange(0, width)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
    place = pixel[:, None] * channels + channel[None, :]
    value = tl.load(given + place, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    factor = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    value = value / length[:, None] * scale * factor[None, :]
    tl.store(made + place, (value / (1.0 + tl.exp(-value))).to(made.dtype.element_ty), mask=inside)


def norm_and_silu(norm: Any, x: torch.Tensor, out: torch.Tensor) -> None:
    """Write into ``out`` what ``norm`` (a WanRMS_norm without bias) and SiLU make of ``x``: both channels last, batch 1."""
    channels = x.shape[1]
    pixels, width = x.numel() // channels, triton.next_power_of_2(channels)
    block = max(1, _BLOCK // width)
    with torch.cuda.device_of(x):
        _norm_and_silu[(triton.cdiv(pixels, block),)](
            x, norm.gamma, out, pixels, norm.scale, channels, width=width, block=block, num_warps=_WARPS
        )


def try_out(device: torch.device) -> None:
    """Compile the kernel and run it on a few pixels; raise what Triton raises where it cannot."""
    x = torch.zeros(1, 4, 1, 2, 2, device=device).contiguous(memory_format=torch.channels_last_3d)
    norm_and_silu(SimpleNamespace(gamma=torch.ones(4, device=device), scale=2.0), x, torch.empty_like(x))
