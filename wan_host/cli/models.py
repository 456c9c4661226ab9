"""``wan-host models``: the host lists, plugins fetch, import and make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from wan_host.cli.extensions import ExtensibleGroup
from wan_host.model import NO_MODEL, ModelInfo, ReferenceMode

_GIGABYTE = 1e9


@click.group(cls=ExtensibleGroup)
def models() -> None:
    """List the models that installed plugins offer; plugins add commands to get more."""


@models.command("list")
def list_models() -> None:
    """List every model: its size on disk, which reference modes it can do, and where its files are."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.cli.tables import print_problem, print_table

    settings = prepare_settings(log_level="warning")
    registry = prepare_hooks(settings).registry
    default = registry.default_model(settings.model)
    rows = []
    for name, model in sorted(registry.models.items()):
        generates = model.kind == "generate"
        modes = ", ".join(mode for mode in ReferenceMode if mode in model.reference_modes) if generates else "enhances prompts"
        marked = f"{name} (default)" if name == default else name
        rows.append((marked, model.family, _size(model.path), modes, ", ".join(_also(model)), model.path))
    print_table(("model", "family", "size", "reference modes", "also", "path"), rows)
    for name, reason in registry.orphans.items():
        print_problem(f"model {name}: {reason}")
    if not registry.models:
        click.echo(NO_MODEL)
    elif default is None:
        click.echo("Jobs must name a model: set WAN_HOST_MODEL to choose one for those that do not.")
    elif default not in registry.models:
        print_problem(f"WAN_HOST_MODEL: {default!r} is offered by no installed plugin")


def _also(model: ModelInfo) -> Iterator[str]:
    """Give what else there is to know before a model is chosen."""
    if model.image_to_image:
        yield "image to image"
    if model.max_subject_references:
        yield f"up to {model.max_subject_references} subjects"
    if model.random_weights:
        yield "random weights"


def _size(path: str) -> str:
    """Return the size of a folder's files as people read it; empty for what is not on this disk."""
    folder = Path(path)
    if not path or not folder.is_dir():
        return ""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e9:.1f} GB" if size >= _GIGABYTE else f"{size / 1e6:.0f} MB"
