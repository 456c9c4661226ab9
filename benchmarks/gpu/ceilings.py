"""What the machine can do at best with a transformer's own products and attention, and what a pass asks of it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch  # noqa: TID253  # a script on torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn  # noqa: TID253  # as above
from wan_host_wan21.attention import Shape, measure

ROUNDS, WARM_PASSES, PASSES = 10, 6, 6
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


def sustained(config: Any, tokens: int, dtype: torch.dtype, backend: str, device: torch.device) -> float | None:
    """Return the seconds of a pass's products and attention alone, in its order, on a GPU that is as warm as at work.

    What a kernel reaches in a burst it does not keep up: under load a GPU lowers its clocks.
    """
    if device.type != "cuda":
        return None
    width, wide, heads = config.num_attention_heads * config.attention_head_dim, config.ffn_dim, config.num_attention_heads
    rows, middle = (torch.randn(1, tokens, size, device=device, dtype=dtype) for size in (width, wide))
    text = torch.randn(2, 1, TEXT_TOKENS, heads, config.attention_head_dim, device=device, dtype=dtype)
    joined, square, up, down = (
        torch.randn(out, into, device=device, dtype=dtype)
        for out, into in ((3 * width, width), (width, width), (wide, width), (width, wide))
    )
    linear, chosen = torch.nn.functional.linear, AttentionBackendName(backend)

    def one_pass() -> None:
        for _ in range(config.num_layers):
            query, key, value = (part.unflatten(2, (heads, -1)) for part in linear(rows, joined).chunk(3, dim=-1))
            linear(dispatch_attention_fn(query, key, value, backend=chosen).flatten(2), square)
            linear(
                dispatch_attention_fn(linear(rows, square).unflatten(2, (heads, -1)), *text, backend=chosen).flatten(2), square
            )
            linear(rows, up)
            linear(middle, down)

    for _ in range(WARM_PASSES):
        one_pass()
    wait(device)
    begun = time.perf_counter()
    for _ in range(PASSES):
        one_pass()
    wait(device)
    return (time.perf_counter() - begun) / PASSES


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
