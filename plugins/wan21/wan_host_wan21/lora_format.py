"""Read an adapter's file, in whatever format it was written, as factors by diffusers' names that act with a scale of 1."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wan_host import UnsupportedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

PREFIX = "transformer."
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_B.bias")
CONFIG_FILE = "adapter_config.json"
"""Where PEFT writes its configuration, beside the adapter."""
_PEFT_PREFIX = "base_model.model."
_HEADER = "lora_adapter_metadata"
"""Where diffusers writes PEFT's configuration into the header of a safetensors file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What PEFT's configuration says of strength: a layer acts by ``alpha / rank``, unless told otherwise."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False
    dora: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """Return by how much a layer's product is multiplied; 1 where nothing is said."""
        alpha = next((value for key, value in self.alphas.items() if re.match(rf"(.*\.)?({key})$", layer)), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root else rank)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraFile:
    """What a file holds: ``factors`` by diffusers' names, and ``left_out``, the keys that diffusers cannot apply, without effect.

    ``digest`` is of the factors: the same ones have the same, wherever the file lies.
    """

    factors: Mapping[str, torch.Tensor]
    digest: str
    left_out: tuple[str, ...] = ()


def read_lora(path: Path, name: str, field: str) -> LoraFile:
    """Read a file in diffusers' format, PEFT's, Wan's own names or Kohya's. Raise UnsupportedRequest for anything else.

    ``field`` begins the messages. Strengths that the configuration names (alpha, rank-stabilised) are multiplied into the
    second factor: given plain tensors, diffusers would take alpha for the rank.
    """
    from diffusers import WanPipeline
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        state = {key.replace(_PEFT_PREFIX, PREFIX, 1): value for key, value in load_file(path).items()}
        with safe_open(path, framework="pt") as opened:
            config = _config(path, opened.metadata() or {})
        _refuse_what_would_be_dropped(state, name, field)
        if config.dora:
            raise UnsupportedRequest(f"{field}: {name} is a DoRA, which diffusers cannot apply to Wan")
        converted = dict(WanPipeline.lora_state_dict(state))
        factors = _scaled(converted, config)
    except SafetensorError as error:
        raise UnsupportedRequest(f"{field}: {name} is no safetensors file: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, re.error) as error:
        raise UnsupportedRequest(f"{field}: {name} is no adapter for Wan: {error}") from error
    broken = next((key for key, value in factors.items() if not bool(value.float().isfinite().all())), None)
    if broken is not None:
        raise UnsupportedRequest(f"{field}: {name} holds numbers that are not finite ({broken})")
    return LoraFile(factors=factors, digest=_digest(factors), left_out=_left_out(state, converted))


def _digest(factors: Mapping[str, torch.Tensor]) -> str:
    import torch

    found = hashlib.sha256()
    for key, value in sorted(factors.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _refuse_what_would_be_dropped(state: dict[str, torch.Tensor], name: str, field: str) -> None:
    """Raise UnsupportedRequest for what diffusers leaves out with no more than a line in the log."""
    for key, value in state.items():
        if "dora_scale" in key:
            raise UnsupportedRequest(f"{field}: {name} is a DoRA ({key}), which diffusers cannot apply to Wan")
        if key.endswith((".diff", ".diff_b")) and "norm" in key and bool(value.float().any()):
            raise UnsupportedRequest(f"{field}: {name} changes a norm ({key}), which diffusers cannot apply to Wan")


def _left_out(given: Mapping[str, torch.Tensor], converted: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Return the keys of differences to whole weights and biases that diffusers passes by, with a line in the log at most."""
    kept = {id(value) for value in converted.values()}
    return tuple(
        key
        for key, value in sorted(given.items())
        if key.endswith((".diff", ".diff_b", ".diff_m")) and id(value) not in kept and bool(value.float().any())
    )


def _config(path: Path, header: Mapping[str, str]) -> _Config:
    """Return the configuration in the file's header (diffusers) or beside the file (PEFT)."""
    beside = path.with_name(CONFIG_FILE)
    if _HEADER in header:
        found: dict[str, Any] = json.loads(header[_HEADER])
        found = {key.removeprefix(PREFIX): value for key, value in found.items()}
    elif beside.is_file():
        found = json.loads(beside.read_text(encoding="utf-8"))
    else:
        return _Config()
    return _Config(
        alpha=found.get("lora_alpha"),
        alphas=found.get("alpha_pattern") or {},
        root=bool(found.get("use_rslora")),
        dora=bool(found.get("use_dora")),
    )


def _scaled(state: dict[str, torch.Tensor], config: _Config) -> dict[str, torch.Tensor]:
    scaled = dict(state)
    for key, up in state.items():
        if not key.endswith(".lora_B.weight"):
            continue
        layer = key.removesuffix(".lora_B.weight")
        scale = config.scale(layer.removeprefix(PREFIX), up.shape[1])
        if scale != 1:
            for part in ("lora_B.weight", "lora_B.bias"):
                if f"{layer}.{part}" in state:
                    scaled[f"{layer}.{part}"] = state[f"{layer}.{part}"] * scale
    return scaled
