"""``wan-host models import``: Wan's native layout to the diffusers layout."""

from __future__ import annotations

from pathlib import Path

import click

from wan_host import ModelLoadFailed
from wan_host_wan21.settings import read_settings

_HEADS_14B = 40


@click.command("import")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="The name of the model; default: by its kind and size, such as wan2.1-vace-1.3b.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write; default: NAME in the models folder.")
@click.option("--replace", "replacing", is_flag=True, help="Replace a folder that is there already.")
def import_(path: Path, name: str | None, output: Path | None, *, replacing: bool) -> None:
    """Turn PATH, a folder in Wan's native layout (T2V or VACE), into the diffusers layout.

    Every key and shape is checked first. Transformer and text encoder become bfloat16, the VAE stays float32. One shard at a
    time is in memory.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from wan_host_wan21.layout import require_space, whole_folder
    from wan_host_wan21.native import convert, open_native

    try:
        with open_native(path) as (kind, parts):
            size = "14b" if parts[-1].module.config.num_attention_heads >= _HEADS_14B else "1.3b"
            target = output or read_settings().models_path / (name or f"wan2.1-{kind}-{size}")
            if path.resolve().is_relative_to(target.resolve()):
                raise click.ClickException(f"{target} is not written, as {path} is read from it; choose another --output")
            total = sum(part.bytes() for part in parts)
            require_space(target, total)
            columns = (TextColumn("{task.description:<12}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            with whole_folder(target, replace=replacing) as folder, Progress(*columns) as progress:
                task = progress.add_task("", total=total)
                convert(path, folder, kind, parts, lambda part, written: progress.update(task, description=part, advance=written))
    except ModelLoadFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target}: {kind.upper()} {size}, {total / 1e9:.2f} GB")
