"""Recognise a checkpoint by its small JSON files: what it is, what it can do, and what is missing. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from wan_host import ModelLoadFailed, ReferenceMode

VACE_CHECKPOINT = "Wan-AI/Wan2.1-VACE-1.3B-diffusers"
"""The one checkpoint that serves every mode: a text-to-video model plus its adapter (WanVACETransformer3DModel)."""

MAX_SUBJECTS = 4
"""Subject references that a VACE checkpoint takes, by the wire contract."""

_TRANSFORMERS = ("WanTransformer3DModel", "WanVACETransformer3DModel")
_REQUIRED = ("tokenizer", "text_encoder", "transformer", "vae")
NATIVE_VAE, NATIVE_TEXT_ENCODER = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
"""Files by which Wan's own layout is known."""
_TEXT_TO_VIDEO_CHANNELS = 16
_HEADS_14B = 40


class Kind(StrEnum):
    """What a checkpoint was trained for."""

    T2V = "t2v"
    VACE = "vace"
    I2V = "i2v"
    FLF2V = "flf2v"
    FUN_INP = "fun_inp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder in the diffusers layout. ``heads`` tells the sizes apart: 12 at 1.3B, 40 at 14B."""

    path: Path
    kind: Kind
    heads: int
    random_weights: bool = False

    @property
    def reference_modes(self) -> frozenset[ReferenceMode]:
        """The modes in which references condition the video."""
        return REFERENCE_MODES[self.kind]

    @property
    def adapter(self) -> bool:
        """Whether the transformer has VACE's adapter."""
        return self.kind is Kind.VACE

    @property
    def animates(self) -> bool:
        """Whether it makes videos from images alone, and nothing without one."""
        return self.kind not in {Kind.T2V, Kind.VACE}

    @property
    def image_to_image(self) -> bool:
        """Whether image jobs can start from an image: every model that denoises plain latents can."""
        return not self.animates


REFERENCE_MODES: dict[Kind, frozenset[ReferenceMode]] = {
    Kind.T2V: frozenset({ReferenceMode.NONE}),
    Kind.VACE: frozenset(ReferenceMode),
    Kind.I2V: frozenset({ReferenceMode.SINGLE, ReferenceMode.START}),
    Kind.FLF2V: frozenset({ReferenceMode.BOTH}),
    Kind.FUN_INP: frozenset({ReferenceMode.SINGLE, ReferenceMode.START, ReferenceMode.BOTH}),
}


def recognise(path: Path) -> Checkpoint:
    """Read a folder's JSON files and say what it is. Raise ModelLoadFailed, naming what is wrong, where it cannot be used."""
    if not path.is_dir():
        raise ModelLoadFailed(f"{path} is no folder; a model's path is a folder in the diffusers layout (model_index.json)")
    if not (path / "model_index.json").is_file():
        if is_native(path):
            raise ModelLoadFailed(
                f"{path} holds Wan's native layout; `wan-host models import {path}` turns it into the diffusers layout"
            )
        raise ModelLoadFailed(f"{path} has no model_index.json, so it is no checkpoint in the diffusers layout")
    index = read_json(path / "model_index.json")
    missing = [name for name in _REQUIRED if not (path / name).is_dir()]
    if missing:
        raise ModelLoadFailed(f"{path} is incomplete: {', '.join(missing)} missing")
    for name in ("text_encoder", "transformer", "vae"):
        _check_weights(path / name)
    config = read_json(path / "transformer" / "config.json")
    found = config.get("_class_name")
    if found not in _TRANSFORMERS:
        raise ModelLoadFailed(f"{path} has a {found}; this plugin runs {' and '.join(_TRANSFORMERS)}")
    if index.get("boundary_ratio") or index.get("expand_timesteps") or _is_part(index, "transformer_2"):
        raise ModelLoadFailed(f"{path} is a Wan 2.2 checkpoint, which this plugin would run wrongly; it runs Wan 2.1")
    heads = _heads(path / "transformer", config)
    kind = _kind(config, heads)
    if config.get("image_dim") is not None:
        if not (path / "image_encoder").is_dir():
            raise ModelLoadFailed(f"{path} is incomplete: image_encoder missing")
        _check_weights(path / "image_encoder")
    return Checkpoint(
        path=path,
        kind=kind,
        heads=heads,
        random_weights=bool(index.get("_random_weights", False)),
    )


def is_native(path: Path) -> bool:
    """Whether a folder holds Wan's own layout, as the original repository's checkpoints have it."""
    return any((path / name).is_file() for name in (NATIVE_VAE, NATIVE_TEXT_ENCODER))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raise ModelLoadFailed where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadFailed(f"{path} holds no JSON object")
    return value


def _heads(folder: Path, config: dict[str, Any]) -> int:
    heads = config.get("num_attention_heads", _HEADS_14B)  # diffusers' default
    if not isinstance(heads, int):
        raise ModelLoadFailed(f"{folder}: num_attention_heads is {heads!r}; it must be a whole number")
    return heads


def _kind(config: dict[str, Any], heads: int) -> Kind:
    if config.get("_class_name") == "WanVACETransformer3DModel":
        return Kind.VACE
    if config.get("in_channels", _TEXT_TO_VIDEO_CHANNELS) == config.get("out_channels", _TEXT_TO_VIDEO_CHANNELS):
        return Kind.T2V
    if config.get("pos_embed_seq_len") is not None:
        return Kind.FLF2V  # it learned positions for two images (convert_wan_to_diffusers.py)
    # Of the size 1.3B there is no I2V by the Wan team; what has its shape was trained on first and last frames (Fun-InP).
    return Kind.FUN_INP if heads < _HEADS_14B else Kind.I2V


def _is_part(index: dict[str, Any], name: str) -> bool:
    """Whether model_index.json names a class for a part; [null, null] stands for none."""
    named = index.get(name)
    return isinstance(named, list) and any(value is not None for value in named)


def _check_weights(folder: Path) -> None:
    """Raise ModelLoadFailed where an index names a shard that is not there, or where there are no safetensors at all."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    for index in indexes:
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ModelLoadFailed(f"{index} does not say which file holds which key (weight_map)")
        lost = sorted({shard for shard in shards.values() if not (folder / shard).is_file()})
        if lost:
            raise ModelLoadFailed(f"{folder} is incomplete: {', '.join(lost)} missing")
    if not indexes and not any(folder.glob("*.safetensors")):
        raise ModelLoadFailed(f"{folder} holds no safetensors; pickled weights are not loaded")
