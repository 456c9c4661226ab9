"""Checkpoints with random weights: Wan's real classes, at the real size or tiny, for trying things without any download.

What such a checkpoint makes is noise. Its model card and ``model_index.json`` say so, and so does every report.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host_wan21.checkpoint import Kind
from wan_host_wan21.components import Components
from wan_host_wan21.layout import write_index
from wan_host_wan21.turbo import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

_CARD = """---
tags: [wan, random-weights]
---
# Random weights

The modules of this checkpoint have the architecture of Wan 2.1 {kind} ({size}) and **random weights**: what it generates is
noise. It serves to try loading, memory and speed. Made by `wan-host models fake` with seed {seed}.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Dimensions of a checkpoint; ``text_dim`` is the text encoder's width too. VACE has a block before every second layer."""

    name: str
    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text_dim: int
    text_layers: int
    text_heads: int
    text_head_dim: int
    text_ffn_dim: int
    vocabulary: int
    vae_base: int
    vae_multipliers: tuple[int, ...]
    vae_res_blocks: int


# convert_wan_to_diffusers.py get_transformer_config, umt5-xxl's config.json, and the defaults of AutoencoderKLWan.
REAL = Size(
    name="1.3b",
    heads=12,
    head_dim=128,
    ffn_dim=8960,
    layers=30,
    text_dim=4096,
    text_layers=24,
    text_heads=64,
    text_head_dim=64,
    text_ffn_dim=10240,
    vocabulary=256384,
    vae_base=96,
    vae_multipliers=(1, 2, 4, 4),
    vae_res_blocks=2,
)
TINY = Size(
    name="tiny",
    heads=2,
    head_dim=12,
    ffn_dim=32,
    layers=2,
    text_dim=32,
    text_layers=2,
    text_heads=2,
    text_head_dim=16,
    text_ffn_dim=32,
    vocabulary=384,
    vae_base=3,
    vae_multipliers=(1, 1, 1, 1),
    vae_res_blocks=1,
)
_IMAGE_KINDS = (Kind.I2V, Kind.FLF2V, Kind.FUN_INP)
_IMAGE_WIDTH, _IMAGE_TOKENS = 32, 5
"""Of the tiny image encoder: the only size in which image-to-video checkpoints are made, for tests."""
SIZES = {size.name: size for size in (REAL, TINY)}


def write_checkpoint(path: Path, kind: Kind, size: Size, *, seed: int = 0, progress: Callable[[str], None] = print) -> None:
    """Write a complete folder in the diffusers layout. Parts are built and saved one by one.

    At the real size transformer and text encoder are bfloat16; tiny ones are float32, for comparisons bit by bit.
    """
    import torch

    low = torch.bfloat16 if size is not TINY else torch.float32
    _tokenizer().save_pretrained(path / "tokenizer")
    parts: tuple[tuple[str, torch.dtype, Callable[[], Any]], ...] = (
        ("text_encoder", low, lambda: _text_encoder(size)),
        ("vae", torch.float32, lambda: _vae(size)),
        ("transformer", low, lambda: _transformer(kind, size)),
    )
    if kind in _IMAGE_KINDS:
        parts += (("image_encoder", torch.float32, _image_encoder),)
        _image_processor().save_pretrained(path / "image_processor")
    for name, dtype, build in parts:
        progress(name)
        with torch.random.fork_rng(devices=[]), _default_dtype(dtype):
            torch.manual_seed(seed)
            module = build()
        module.save_pretrained(path / name, safe_serialization=True)
        del module
    write_index(path, kind, random_weights=True)
    (path / "README.md").write_text(_CARD.format(kind=kind.upper(), size=size.name, seed=seed), encoding="utf-8")


def random_components(kind: Kind, size: Size, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> Components:
    """Return the parts of a text-to-video or VACE checkpoint with random weights, built on a device: nothing goes through a disk.

    ``dtype`` is the transformer's and the text encoder's; what diffusers keeps in float32 when it loads is float32 here too.
    """
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        with _default_dtype(dtype):
            text_encoder = _text_encoder(size)
        vae = _vae(size)
        transformer = _transformer(kind, size)
    kept = tuple(transformer._keep_in_fp32_modules)  # noqa: SLF001  # the list that from_pretrained goes by
    for name, parameter in transformer.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    parts = {"text_encoder": text_encoder, "vae": vae, "transformer": transformer}
    for part in parts.values():
        part.eval().requires_grad_(requires_grad=False)
    return Components(tokenizer=_tokenizer(), adapter=kind is Kind.VACE, **parts)


def write_turbo(path: Path, transformer: Any, *, rank: int = 32, sigmas: tuple[float, ...], seed: int = 0) -> Path:
    """Write a step-distilled adapter with small random factors for a transformer's main blocks, to try its speed."""
    import torch
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in transformer.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear):
            state[f"transformer.blocks.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=source) / 100
            state[f"transformer.blocks.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=source) / 100
    header = json.dumps({"sampler": "euler", "sigmas": list(sigmas)})
    save_file({name: value.bfloat16() for name, value in state.items()}, path, metadata={HEADER: header})
    return path


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in a dtype at once: UMT5-XXL would take 23 GB in float32 first."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _transformer(kind: Kind, size: Size) -> Any:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": size.heads,
        "attention_head_dim": size.head_dim,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": size.text_dim,
        "freq_dim": 256,
        "ffn_dim": size.ffn_dim,
        "num_layers": size.layers,
    }
    if kind in _IMAGE_KINDS:
        # 16 noise channels, 16 of the image's latents and a mask of 4.
        config |= {"in_channels": 36, "image_dim": _IMAGE_WIDTH, "added_kv_proj_dim": size.heads * size.head_dim}
        if kind is Kind.FLF2V:
            config["pos_embed_seq_len"] = 2 * _IMAGE_TOKENS
    if kind is Kind.VACE:
        return WanVACETransformer3DModel(**config, vace_layers=list(range(0, size.layers, 2)), vace_in_channels=96)
    return WanTransformer3DModel(**config)


def _vae(size: Size) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=size.vae_base, dim_mult=list(size.vae_multipliers), num_res_blocks=size.vae_res_blocks, z_dim=16
    )


def _text_encoder(size: Size) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=size.vocabulary,
            d_model=size.text_dim,
            d_kv=size.text_head_dim,
            d_ff=size.text_ffn_dim,
            num_layers=size.text_layers,
            num_heads=size.text_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=_IMAGE_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return CLIPVisionModel(config)


def _image_processor() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _tokenizer() -> Any:
    """Return a tokenizer of single Latin characters, with UMT5's special tokens at their numbers; all else is unknown to it."""
    from transformers import T5TokenizerFast

    # The mark of a word's start is worse than any letter, so that it stands alone before the letters.
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    vocabulary += [(chr(code), -1.0) for code in (*range(0x21, 0x7F), *range(0xA1, 0x180))]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)
