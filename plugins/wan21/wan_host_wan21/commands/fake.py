"""``wan-host models fake``: a checkpoint with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from wan_host_wan21.catalogue import OFFICIAL
from wan_host_wan21.settings import read_settings

_KINDS = {official.name: official.kind for official in OFFICIAL}


@click.command("fake")
@click.argument("name", type=click.Choice(sorted(_KINDS)))
@click.option("--size", type=click.Choice(["1.3b", "tiny"]), default="1.3b", show_default=True, help="1.3b is the real size.")
@click.option("--text-layers", type=click.IntRange(1, 24), help="Layers of the text encoder, instead of 24.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write; default: NAME in the models folder.")
@click.option("--replace", "replacing", is_flag=True, help="Replace a folder that is there already.")
def fake(name: str, size: str, text_layers: int | None, seed: int, output: Path | None, *, replacing: bool) -> None:
    """Write a checkpoint of NAME's architecture with random weights, to try loading, memory and speed without a download.

    What it makes is noise; its model card and every report say so. The real size takes 16 GB on disk and 12 GB of memory.
    """
    from wan_host_wan21.fake import SIZES, write_checkpoint
    from wan_host_wan21.layout import folder_bytes, whole_folder

    target = output or read_settings().models_path / name
    chosen = SIZES[size] if text_layers is None else replace(SIZES[size], text_layers=text_layers)
    with whole_folder(target, replace=replacing) as folder:
        write_checkpoint(
            folder, _KINDS[name], chosen, seed=seed, progress=lambda part: click.echo(f"making {part} ...", err=True)
        )
    click.echo(f"{target}: random weights, {folder_bytes(target) / 1e9:.2f} GB")
