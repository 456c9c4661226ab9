"""Attention to a prompt whose padding is one row repeated, as attention to that row once: the same result with fewer keys."""

# ruff: noqa: PLR0917, ANN001, ANN202 - kernels take many arguments, of Triton's own types, and the compiler's view of them takes no keywords
from __future__ import annotations

import math
from typing import Any

import torch  # noqa: TID253  # this module is imported with a loaded model
import triton
import triton.language as tl
from diffusers.models.transformers.transformer_wan import WanAttnProcessor  # noqa: TID253  # as above

_WARPS, _WIDE_WARPS = 4, 8
_QUERIES, _KEYS, _LEAST = 128, 64, 16
"""Rows of a tile, and the least that a matrix instruction takes."""


@triton.jit
def _ends_of_texts(text, ends, rows, width, block: tl.constexpr):
    """One row of a text: where it is not its text's last row, the text's end lies behind it."""
    row, sample = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, block)
    inside = place < width
    begin = text + sample.to(tl.int64) * rows * width
    this = tl.load(begin + row * width + place, mask=inside, other=0.0).to(tl.float32)
    last = tl.load(begin + (rows - 1) * width + place, mask=inside, other=0.0).to(tl.float32)
    if tl.sum(tl.where(this == last, 0, 1), axis=0) > 0:
        tl.atomic_max(ends + sample, row + 2)


@triton.jit
def _attend_to_text(
    query, key, value, ends, made, key_sample, key_row, value_sample, value_row, tokens, rows, heads, head, scale,
    queries: tl.constexpr, keys: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Compute, for some queries of one head, attention to a text whose last row stands for all that are the same as it."""
    index, sample = tl.program_id(1), (tl.program_id(2)).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * queries + tl.arange(0, queries)
    place, pair = tl.arange(0, block), tl.arange(0, keys)
    known = place < head
    at = ((sample * tokens + token[:, None]) * heads + index) * head + place[None, :]
    wanted = (token[:, None] < tokens) & known[None, :]
    asked = tl.load(query + at, mask=wanted, other=0.0)
    end = tl.load(ends + sample)
    same = tl.log2((rows - end + 1).to(tl.float32))
    key += sample * key_sample + index * head
    value += sample * value_sample + index * head
    largest = tl.full((queries,), float("-inf"), tl.float32)
    total = tl.zeros((queries,), tl.float32)
    found = tl.zeros((queries, block), tl.float32)
    for begin in range(0, end, keys):
        row = begin + pair
        there = row < end
        offered = tl.load(key + row[None, :] * key_row + place[:, None], mask=there[None, :] & known[:, None], other=0.0)
        score = tl.dot(asked, offered, input_precision="ieee") * scale
        score = tl.where(row == end - 1, same, 0.0)[None, :] + score
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(largest, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        shrinks = tl.exp2(largest - higher)
        total = total * shrinks + tl.sum(weight, axis=1)
        given = tl.load(value + row[:, None] * value_row + place[None, :], mask=there[:, None] & known[None, :], other=0.0)
        found = found * shrinks[:, None] + tl.dot(weight.to(given.dtype), given, input_precision="ieee")
        largest = higher
    tl.store(made + at, (found / total[:, None]).to(made.dtype.element_ty), mask=wanted)


@torch.library.custom_op("wan_host_wan21::attend_to_text", mutates_args=())
def attend_to_text(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return attention of ``query`` (batch, tokens, heads, width) to ``key`` and ``value`` of a text (batch, rows, heads, width).

    A text is padded to its 512 rows by one and the same, and attention to n equal keys is attention to one whose score is log(n)
    higher. From where on the rows of ``text`` (batch, rows, any width), of which keys and values are made, are all the same is
    seen on the device: nothing waits, and nothing is left out where they differ to the end.
    """
    batch, tokens, heads, head = query.shape
    rows, width = text.shape[1:]
    ends = torch.ones(batch, dtype=torch.int32, device=text.device)
    made = torch.empty_like(query, memory_format=torch.contiguous_format)
    key, value = (part if part.stride()[2:] == (head, 1) else part.contiguous() for part in (key, value))
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(query):
        _ends_of_texts[(rows, batch)](text.contiguous(), ends, rows, width, block=block, num_warps=_WARPS)
        _attend_to_text[(triton.cdiv(tokens, _QUERIES), heads, batch)](
            query.contiguous(),
            key,
            value,
            ends,
            made,
            *key.stride()[:2],
            *value.stride()[:2],
            tokens,
            rows,
            heads,
            head,
            math.log2(math.e) / math.sqrt(head),
            queries=_QUERIES,
            keys=_KEYS,
            block=max(_LEAST, triton.next_power_of_2(head)),
            num_warps=_WIDE_WARPS,
        )
    return made


@attend_to_text.register_fake
def _(query: Any, *_others: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


class TextAttention(WanAttnProcessor):
    """diffusers' processor, with the kernel for attention to a text by fused projections; anything else is diffusers' own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return what attention to a text (batch, rows, width) makes of ``hidden_states`` (batch, tokens, width)."""
        if encoder_hidden_states is None or attn.add_k_proj is not None or not hasattr(attn, "to_kv"):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.norm_q(attn.to_q(hidden_states))
        key, value = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        parts = (part.unflatten(2, (attn.heads, -1)) for part in (query, attn.norm_k(key), value))
        return attn.to_out[0](attend_to_text(*parts, encoder_hidden_states).flatten(2, 3))
