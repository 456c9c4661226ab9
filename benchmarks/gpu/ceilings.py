"""What the machine can do at best with a transformer's own products and attention, and what a pass asks of it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch  # noqa: TID253  # a script on torch
from wan_host_wan21.attention import Shape, measure

ROUNDS = 10
TEXT_TOKENS = 512


def measured(config: Any, tokens: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return TFLOP/s of the widest linear layer and of every exact attention kernel at this length."""
    width, wide = config.num_attention_heads * config.attention_head_dim, config.ffn_dim
    rows = torch.randn(tokens, width, device=device, dtype=dtype)
    weight = torch.randn(wide, width, device=device, dtype=dtype)
    product = _seconds(lambda: torch.nn.functional.linear(rows, weight), device)
    found = {"matmul": 2 * tokens * width * wide / product / 1e12}
    work = 4 * tokens * tokens * width
    if device.type == "cuda":
        shape = Shape(
            heads=config.num_attention_heads,
            tokens=tokens,
            width=config.attention_head_dim,
            dtype=str(dtype).removeprefix("torch."),
        )
        kernels = {name: work / (milliseconds / 1e3) / 1e12 for name, milliseconds in measure(shape, device).items()}
    else:
        size = (3, 1, config.num_attention_heads, tokens, config.attention_head_dim)
        query, key, value = torch.randn(size, dtype=dtype, device=device)
        attend = torch.nn.functional.scaled_dot_product_attention
        kernels = {"native": work / _seconds(lambda: attend(query, key, value), device) / 1e12}
    return found | {"attention": max(kernels.values()), "kernels": kernels}


def floor(config: Any, tokens: int, ceilings: dict[str, Any]) -> float:
    """Return the seconds that one pass of the text-to-video transformer takes at the two ceilings, and nothing else."""
    width, wide, layers = config.num_attention_heads * config.attention_head_dim, config.ffn_dim, config.num_layers
    linear = layers * (2 * tokens * width * (6 * width + 2 * wide) + 2 * 2 * TEXT_TOKENS * width * width)
    attention = layers * (4 * tokens * tokens * width + 4 * tokens * TEXT_TOKENS * width)
    return linear / (ceilings["matmul"] * 1e12) + attention / (ceilings["attention"] * 1e12)


def _seconds(run: Any, device: torch.device) -> float:
    for _ in range(3):
        run()
    found = []
    for _ in range(ROUNDS):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
