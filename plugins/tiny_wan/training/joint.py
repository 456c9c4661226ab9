"""One forward for a batch of plain and of controlled rows, on the official VACE transformer's modules.

What diffusers would compute in two calls, one of them with a control scale of 0, is computed in one: the control blocks
run for the controlled rows only. And 512 text tokens become 64. The pipelines pad prompts with zeros, so all padding
keys are equal, and n equal keys weigh like one with log(n) added to its logit. Both kinds of block share one function,
which a compiler takes in half the time of two. `tests/test_joint.py` holds all of this against the official forward.
"""

# ruff: noqa: ANN001, ANN202, D103, D401, N812, PLR0917 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from training.architecture import TEXT_TOKENS

PADDED_LENGTH = 512


def encode_text(text_encoder: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Embeddings (batch, TEXT_TOKENS + 1, text_dim), zero from the padding on, from ids (batch, TEXT_TOKENS)."""
    mask = ids > 0
    states = text_encoder(ids, mask.long()).last_hidden_state
    return F.pad(states * mask[..., None], (0, 0, 0, 1))


def padding_bias(device: torch.device | str) -> torch.Tensor:
    """Added to the logits of the text keys: the last one stands for the rest of the 512."""
    bias = torch.zeros(1, 1, 1, TEXT_TOKENS + 1, device=device)
    bias[..., -1] = math.log(PADDED_LENGTH - TEXT_TOKENS)
    return bias


def patches(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, frames, height, width) to (batch, tokens, channels * 4), in the order of a patch embedding."""
    batch, channels, frames, height, width = x.shape
    x = x.view(batch, channels, frames, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * height * width // 4, channels * 4)


def block_forward(x, text, modulation, cos, sin, bias, heads: int, weights: list[torch.Tensor]) -> torch.Tensor:
    """WanTransformerBlock on tokens x (batch, tokens, dim), in x's type; norms, gates and rotations in float32."""
    table, q, k, v, norm_q, norm_k, out, norm2, cross_q, cross_k, cross_v, cross_norm_q, cross_norm_k, cross_out, up, down = (
        weights
    )

    def linear(x: torch.Tensor, *layers: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        weight, bias = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*layers, strict=True))
        return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))

    def layer_norm(x: torch.Tensor, weight=None, bias=None) -> torch.Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, 1e-6)

    def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * gain

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    kind = x.dtype
    shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (table + modulation).chunk(6, dim=1)
    h = (layer_norm(x) * (1 + scale) + shift).to(kind)
    a, b, c = linear(h, q, k, v).chunk(3, dim=-1)
    a, b = (rotate(split(rms(part, gain))).to(kind) for part, gain in ((a, norm_q), (b, norm_k)))
    h = F.scaled_dot_product_attention(a, b, split(c)).transpose(1, 2).flatten(2)
    x = (x.float() + linear(h, out) * gate).to(kind)

    a = split(rms(linear(layer_norm(x, *norm2).to(kind), cross_q), cross_norm_q).to(kind))
    b, c = linear(text, cross_k, cross_v).chunk(2, dim=-1)
    b, c = split(rms(b, cross_norm_k).to(kind)), split(c)
    mask = bias.to(kind).expand(a.shape[0], heads, a.shape[2], -1)
    x = x + linear(F.scaled_dot_product_attention(a, b, c, attn_mask=mask).transpose(1, 2).flatten(2), cross_out)

    h = (layer_norm(x) * (1 + scale_ffn) + shift_ffn).to(kind)
    return (x.float() + linear(F.gelu(linear(h, up), approximate="tanh"), down).float() * gate_ffn).to(kind)


def weights_of(block: nn.Module) -> list:
    def attention(a: nn.Module) -> list:
        projections = [(m.weight, m.bias) for m in (a.to_q, a.to_k, a.to_v)]
        return [*projections, a.norm_q.weight, a.norm_k.weight, (a.to_out[0].weight, a.to_out[0].bias)]

    norm, up, down = block.norm2, block.ffn.net[0].proj, block.ffn.net[2]
    return [
        block.scale_shift_table,
        *attention(block.attn1),
        (norm.weight, norm.bias),
        *attention(block.attn2),
        (up.weight, up.bias),
        (down.weight, down.bias),
    ]


def velocity(
    transformer, noisy, timestep, text, control=None, kind: torch.dtype = torch.float32, forward: Callable = block_forward
) -> torch.Tensor:
    """Predicted noise minus data, as patches in float32, for latents (batch, 16, frames, height, width).

    timestep: (batch,) in 0..1000. control: (rows, 96, frames, height, width), for the last `rows` rows of the batch.
    kind: the type to compute in. forward: `block_forward`, or its compiled form.
    """

    def linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, layer.weight.flatten(1).to(kind), layer.bias.to(kind))

    def run(block: nn.Module, x, text, modulation):
        return forward(x, text, modulation, cos, sin, bias, transformer.config.num_attention_heads, weights_of(block))

    bias = padding_bias(noisy.device)
    cos, sin = (part.flatten(0, 2) for part in transformer.rope(noisy))
    cos, sin = cos[:, 0::2].clone(), sin[:, 1::2].clone()
    temb, modulation, text, _ = transformer.condition_embedder(timestep, text, None)
    # The clones keep a compiler from seeing now a view and now a tensor of its own: each would be a graph.
    modulation, text = modulation.unflatten(1, (6, -1)).clone(), text.to(kind).clone()
    x = linear(transformer.patch_embedding, patches(noisy.to(kind))).clone()
    rows, hints = 0, {}
    if control is not None:
        rows = len(control)
        seen, said, timed = (part[-rows:].clone() for part in (x, text, modulation))
        c = linear(transformer.vace_patch_embedding, patches(control.to(kind)))
        for layer, block in zip(transformer.config.vace_layers, transformer.vace_blocks, strict=True):
            if block.proj_in is not None:
                c = linear(block.proj_in, c) + seen
            c = run(block, c, said, timed)
            hints[layer] = linear(block.proj_out, c)
    for layer, block in enumerate(transformer.blocks):
        x = run(block, x, text, modulation)
        if layer in hints:
            x = torch.cat([x[:-rows], x[-rows:] + hints[layer]])
    shift, scale = (transformer.scale_shift_table + temb[:, None]).chunk(2, dim=1)
    x = transformer.norm_out(x.float()) * (1 + scale) + shift
    return _in_patch_order(linear(transformer.proj_out, x.to(kind)).float())


def _in_patch_order(out: torch.Tensor) -> torch.Tensor:
    """The output projection counts channels fastest, the patch embedding slowest."""
    return out.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2)
