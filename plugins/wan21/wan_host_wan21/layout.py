"""The files around the weights of a folder in the diffusers layout."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from wan_host_wan21.checkpoint import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_index(path: Path, kind: Kind, *, random_weights: bool = False) -> None:
    """Write model_index.json as the official repositories have it, and the scheduler that it names."""
    from diffusers import UniPCMultistepScheduler

    adapter, images = kind is Kind.VACE, kind in {Kind.I2V, Kind.FLF2V, Kind.FUN_INP}
    index: dict[str, Any] = {
        "_class_name": "WanVACEPipeline" if adapter else "WanImageToVideoPipeline" if images else "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanVACETransformer3DModel" if adapter else "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if images:
        index |= {"image_encoder": ["transformers", "CLIPVisionModel"], "image_processor": ["transformers", "CLIPImageProcessor"]}
    if random_weights:
        index["_random_weights"] = True  # diffusers passes over keys that begin with an underscore
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a folder to write into that takes ``target``'s name only when everything has gone well; ``target`` may be empty.

    ``replace`` is for checkpoints alone: what is imported, or a folder of models, must not be lost to a wrong name.
    """
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and not (target / "model_index.json").is_file():
        raise click.ClickException(
            f"{target} is no checkpoint in the diffusers layout, so it is not replaced; choose another --output"
        )
    if taken and not replace:
        raise click.ClickException(f"{target} exists already; --replace writes it anew")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if taken:
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise ClickException where the disk has less than ``needed`` bytes free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise click.ClickException(f"{folder} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def folder_bytes(path: Path) -> int:
    """Return the size of a folder's files, links followed."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
