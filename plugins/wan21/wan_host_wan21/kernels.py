"""Kernels for what a block does between its products and its attention, where a compiler leaves memory traffic behind.

Each computes what the modules that it stands for compute, rounding included where it is cheap: the norm and the rotation of
queries and keys in one pass over them, the activation in the product's own epilogue, the stream's sum, norm and modulation in
one, and, for layers in 8 bits, bias, activation and rounding. They are opaque to torch.compile, so inputs keep their strides.
"""

# ruff: noqa: PLR0917, ANN001, ANN202 - kernels take many arguments, of Triton's own types, and the compiler's view of them takes no keywords
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # this module is imported with a loaded model
import triton
import triton.language as tl
from diffusers.models.attention_dispatch import dispatch_attention_fn  # noqa: TID253  # as above
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock  # noqa: TID253  # as above

from wan_host_wan21.fp8 import LARGEST, SMALLEST_SCALE, Fp8Linear, rounded_rows
from wan_host_wan21.text_attention import TextAttention

if TYPE_CHECKING:
    from collections.abc import Iterable

_WARPS, _WIDE_WARPS, _WIDE = 4, 8, 4096


@triton.jit
def _norm_and_rotate(given, weight, cosines, sines, made, row_stride, tokens, epsilon, width, head, block: tl.constexpr):
    """One row: x / rms(x) * weight over all heads, rounded as the norm rounds it, then each pair of a head turned."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    inside = place < width
    hidden = tl.load(given + row * row_stride + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(hidden * hidden, axis=0) / width + epsilon)
    factor = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    normed = (hidden * scale * factor).to(made.dtype.element_ty).to(tl.float32)
    even, odd = tl.split(tl.reshape(normed, (block // 2, 2)))
    pair = tl.arange(0, block // 2)
    angle = (row % tokens) * head + (2 * pair) % head
    known = 2 * pair < width
    cosine = tl.load(cosines + angle, mask=known, other=0.0)
    sine = tl.load(sines + angle + 1, mask=known, other=0.0)
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    tl.store(made + row * width + place, tl.reshape(turned, (block,)).to(made.dtype.element_ty), mask=inside)


@triton.jit
def _add_and_norm(
    stream, change, gate, factor, shift, summed, normed, gate_stride, factor_stride, shift_stride, tokens, epsilon, width,
    adds: tl.constexpr, gates: tl.constexpr, modulates: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One row: the stream with a change added, rounded; then its layer norm, scaled and shifted."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    place = tl.arange(0, block)
    inside = place < width
    hidden = tl.load(stream + row * width + place, mask=inside, other=0.0).to(tl.float32)
    if adds:
        added = tl.load(change + row * width + place, mask=inside, other=0.0).to(tl.float32)
        if gates:
            added = added * tl.load(gate + sample * gate_stride + place, mask=inside, other=0.0)
        hidden = (hidden + added).to(summed.dtype.element_ty)
        tl.store(summed + row * width + place, hidden, mask=inside)
        hidden = hidden.to(tl.float32)
    centred = tl.where(inside, hidden - tl.sum(hidden, axis=0) / width, 0.0)
    centred = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + epsilon)
    weight = tl.load(factor + sample * factor_stride + place, mask=inside, other=0.0).to(tl.float32)
    if modulates:
        weight += 1.0
    bias = tl.load(shift + sample * shift_stride + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + place, (centred * weight + bias).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _bias_gelu_round(given, bias, rounded, scales, width, largest, smallest, block: tl.constexpr):
    """One row: gelu(x + bias) in 8 bits with the row's scale."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    inside = place < width
    hidden = tl.load(given + row * width + place, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    hidden = (hidden + added).to(given.dtype.element_ty).to(tl.float32)
    inner = 0.7978845608028654 * (hidden + 0.044715 * hidden * hidden * hidden)
    # x/2 (1 + tanh(a)) is x sigmoid(2a), with one exponential.
    active = (hidden / (1.0 + tl.exp(-2.0 * inner))).to(given.dtype.element_ty).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(active), axis=0) / largest, smallest)
    tl.store(rounded + row * width + place, (active / scale).to(rounded.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@torch.library.custom_op("wan_host_wan21::norm_and_rotate", mutates_args=())
def norm_and_rotate(
    hidden: torch.Tensor, weight: torch.Tensor, epsilon: float, heads: int, cosines: torch.Tensor, sines: torch.Tensor
) -> torch.Tensor:
    """Norm ``hidden`` (batch, tokens, width) over its width and rotate its heads; return (batch, tokens, heads, width / heads).

    ``cosines`` and ``sines``: float32, (1, tokens, 1, width / heads), each value twice, as diffusers' WanRotaryPosEmbed has them.
    """
    batch, tokens, width = hidden.shape
    rows = hidden.reshape(batch * tokens, width)
    made = torch.empty(batch, tokens, heads, width // heads, dtype=hidden.dtype, device=hidden.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(hidden):
        _norm_and_rotate[(batch * tokens,)](
            rows,
            weight,
            cosines,
            sines,
            made,
            rows.stride(0),
            tokens,
            epsilon,
            width,
            width // heads,
            block,
            num_warps=_warps(block),
        )
    return made


@norm_and_rotate.register_fake
def _(hidden: Any, weight: Any, epsilon: float, heads: int, cosines: Any, sines: Any) -> torch.Tensor:  # noqa: ARG001  # the names are part of its signature
    batch, tokens, width = hidden.shape
    return hidden.new_empty(batch, tokens, heads, width // heads)


@torch.library.custom_op("wan_host_wan21::norm_and_modulate", mutates_args=())
def norm_and_modulate(stream: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return norm(stream) * (1 + scale) + shift for a stream (batch, tokens, width), rounded as it is.

    ``scale`` and ``shift``: float32 (batch, 1, width), two parts of one modulation.
    """
    normed = torch.empty_like(stream, memory_format=torch.contiguous_format)
    _launch_norm(stream, None, None, scale, shift, None, normed, epsilon, modulates=True)
    return normed


@norm_and_modulate.register_fake
def _(stream: Any, *_others: Any) -> torch.Tensor:
    return torch.empty_like(stream, memory_format=torch.contiguous_format)


@torch.library.custom_op("wan_host_wan21::add_and_norm", mutates_args=())
def add_and_norm(
    stream: torch.Tensor,
    change: torch.Tensor,
    gate: torch.Tensor | None,
    factor: torch.Tensor,
    shift: torch.Tensor,
    epsilon: float,
    modulates: bool,  # noqa: FBT001  # an operator's arguments have no keywords in a compiled graph
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return stream + change * gate, rounded, and its norm * factor + shift; with ``modulates`` it is 1 + factor.

    ``gate``, and with ``modulates`` ``factor`` and ``shift``, are parts of one modulation, float32 (batch, 1, width); without it
    these two are the norm's own weights (width).
    """
    summed, normed = (torch.empty_like(stream, memory_format=torch.contiguous_format) for _ in range(2))
    _launch_norm(stream, change, gate, factor, shift, summed, normed, epsilon, modulates=modulates)
    return summed, normed


@add_and_norm.register_fake
def _(stream: Any, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    summed, normed = (torch.empty_like(stream, memory_format=torch.contiguous_format) for _ in range(2))
    return summed, normed


def _launch_norm(
    stream: Any, change: Any, gate: Any, factor: Any, shift: Any, summed: Any, normed: Any, epsilon: float, *, modulates: bool
) -> None:
    batch, tokens, width = stream.shape
    for part in (gate, factor, shift):
        if part is not None and part.stride(-1) != 1:
            raise ValueError(f"a modulation's numbers must lie one after another, and these have the strides {part.stride()}")
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(stream):
        _add_and_norm[(batch * tokens,)](
            stream.contiguous(),
            None if change is None else change.contiguous(),
            gate,
            factor,
            shift,
            summed,
            normed,
            *(part.stride(0) if part is not None and part.ndim > 1 else 0 for part in (gate, factor, shift)),
            tokens,
            epsilon,
            width,
            adds=change is not None,
            gates=gate is not None,
            modulates=modulates,
            block=block,
            num_warps=_warps(block),
        )


@torch.library.custom_op("wan_host_wan21::linear_gelu", mutates_args=())
def linear_gelu(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return gelu(hidden @ weight.T + bias), by its tanh form; on CUDA the product's epilogue computes it before it rounds."""
    made = torch._addmm_activation(bias, hidden.reshape(-1, hidden.shape[-1]), weight.t(), use_gelu=True)  # noqa: SLF001  # the epilogue has no public name
    return made.view(*hidden.shape[:-1], -1)


@linear_gelu.register_fake
def _(hidden: Any, weight: Any, bias: Any) -> torch.Tensor:  # noqa: ARG001  # the names are part of its signature
    return hidden.new_empty(*hidden.shape[:-1], weight.shape[0])


@torch.library.custom_op("wan_host_wan21::bias_gelu_round", mutates_args=())
def bias_gelu_round(
    hidden: torch.Tensor, bias: torch.Tensor, largest: float, smallest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gelu(hidden + bias) of rows (rows, width) as float8_e4m3fn, and what each row must be multiplied by, (rows, 1)."""
    rows, width = hidden.shape
    rounded = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=hidden.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=hidden.device)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(hidden):
        _bias_gelu_round[(rows,)](hidden, bias, rounded, scales, width, largest, smallest, block, num_warps=_warps(block))
    return rounded, scales


@bias_gelu_round.register_fake
def _(hidden: Any, bias: Any, largest: float, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001  # as above
    rounded = torch.empty_like(hidden, dtype=torch.float8_e4m3fn)
    return rounded, hidden.new_empty(hidden.shape[0], 1, dtype=torch.float32)


class RotatedAttention(WanAttnProcessor):
    """diffusers' processor, with the kernel for self-attention over fused projections; anything else is diffusers' own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return what attention makes of ``hidden_states`` (batch, tokens, width)."""
        if rotary_emb is None or not hasattr(attn, "to_qkv"):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        query = norm_and_rotate(query, attn.norm_q.weight, attn.norm_q.eps, attn.heads, *rotary_emb)
        key = norm_and_rotate(key, attn.norm_k.weight, attn.norm_k.eps, attn.heads, *rotary_emb)
        value = value.unflatten(2, (attn.heads, -1))
        found = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        return attn.to_out[0](found.flatten(2, 3))


class NormedBlock:
    """What a text-to-video block's forward is, with its sums, norms and modulations in three kernels (transformer_wan.py:469)."""

    def __init__(self, block: Any) -> None:
        """Compute what ``block`` computes, with its own parts."""
        self._block = block

    def __call__(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb: Any
    ) -> Any:
        """Return the stream (batch, tokens, width) behind the block."""
        block, stream = self._block, hidden_states
        shift, scale, gate, late_shift, late_scale, late_gate = (block.scale_shift_table + temb.float()).chunk(6, dim=1)
        normed = norm_and_modulate(stream, scale, shift, block.norm1.eps)
        change = block.attn1(normed, None, None, rotary_emb)
        stream, normed = add_and_norm(stream, change, gate, block.norm2.weight, block.norm2.bias, block.norm2.eps, False)
        change = block.attn2(normed, encoder_hidden_states, None, None)
        stream, normed = add_and_norm(stream, change, None, late_scale, late_shift, block.norm3.eps, True)
        return (stream.float() + block.ffn(normed).float() * late_gate).type_as(stream)


class ActiveLinear(torch.nn.Module):
    """diffusers' GELU module (a linear layer and its activation), with the activation in the product's epilogue."""

    def __init__(self, replaced: Any) -> None:
        """Compute what ``replaced`` computes, with its own weights."""
        super().__init__()
        self.proj = replaced.proj

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return (..., ffn width)."""
        return linear_gelu(hidden_states, self.proj.weight, self.proj.bias)


class RoundedFeedForward(torch.nn.Module):
    """A block's feed-forward of two layers in 8 bits, whose middle is read and written once."""

    def __init__(self, replaced: Any) -> None:
        """Compute what ``replaced``, whose layers are in 8 bits already, computes."""
        super().__init__()
        self.first, self.second = replaced.net[0].proj, replaced.net[2]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return (..., width)."""
        rows, scale = rounded_rows(hidden_states.reshape(-1, hidden_states.shape[-1]))
        middle = self.first.multiply(rows, scale, hidden_states.dtype)
        rows, scale = bias_gelu_round(middle, self.first.bias, LARGEST, SMALLEST_SCALE)
        made = self.second.add_bias(self.second.multiply(rows, scale, hidden_states.dtype))
        return made.view(hidden_states.shape)


class Kernels:
    """These kernels in some blocks, and what they stand in for."""

    def __init__(self, blocks: Iterable[Any]) -> None:
        """Put them in where they fit.

        Norms of text-to-video blocks, attention over fused projections and to prompts, feed-forwards with the tanh form of GELU.
        """
        self._replaced: list[tuple[Any, str, Any]] = []
        self._normed: list[Any] = []
        for block in blocks:
            if type(block) is WanTransformerBlock and getattr(block.norm2, "weight", None) is not None:
                block.forward = NormedBlock(block)
                self._normed.append(block)
            self._swap(block.attn1, "processor", RotatedAttention())
            self._swap(block.attn2, "processor", TextAttention())
            layers = block.ffn.net
            if layers[0].approximate != "tanh" or layers[0].proj.bias is None:
                continue
            if isinstance(layers[0].proj, Fp8Linear) and isinstance(layers[2], Fp8Linear):
                self._swap(block, "ffn", RoundedFeedForward(block.ffn))
            elif type(layers[0].proj) is torch.nn.Linear:
                self._swap(layers, "0", ActiveLinear(layers[0]))

    def take_out(self) -> None:
        """Put back what was there."""
        for owner, name, original in reversed(self._replaced):
            setattr(owner, name, original)
        for block in self._normed:
            del block.forward
        self._replaced, self._normed = [], []

    def _swap(self, owner: Any, name: str, replacement: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, replacement)


def _warps(block: int) -> int:
    return _WIDE_WARPS if block > _WIDE else _WARPS
