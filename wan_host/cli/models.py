"""``wan-host models``: the host lists, plugins fetch, import and make."""

from __future__ import annotations

import click

from wan_host.cli.extensions import ExtensibleGroup


@click.group(cls=ExtensibleGroup)
def models() -> None:
    """List the models that installed plugins offer; plugins add commands to get more."""


@models.command("list")
def list_models() -> None:
    """List every model: what it makes, which references it takes, where its files are."""
    from rich.console import Console
    from rich.table import Table

    from wan_host.cli.setup import prepare_hooks, prepare_settings

    settings = prepare_settings(log_level="warning")
    registry = prepare_hooks(settings).registry
    default = registry.default_model(settings.model)
    table = Table("model", "family", "runner", "job types", "reference modes", "path")
    for name, model in sorted(registry.models.items()):
        modes = ", ".join(mode.value for mode in sorted(model.reference_modes)) if model.kind == "generate" else "-"
        marked = f"{name} (default)" if name == default else name
        table.add_row(marked, model.family, model.runner, ", ".join(model.job_types) or model.kind, modes, model.path)
    console = Console()
    console.print(table)
    for name, reason in registry.orphans.items():
        console.print(f"model {name}: {reason}", style="red", highlight=False, markup=False)
    if default is None:
        console.print("Jobs must name a model: set WAN_HOST_MODEL to choose one for those that do not.")
