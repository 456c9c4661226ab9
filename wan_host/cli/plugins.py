"""``wan-host plugins``."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(*, as_json: bool) -> None:
    """List every plugin that is installed: distribution, version, status, hooks, models, and what is wrong with it."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings

    hooks = prepare_hooks(prepare_settings(log_level="warning"))
    hooks.add_commands()
    registry = hooks.registry
    if as_json:
        rows = [
            {
                "name": record.name,
                "distribution": record.distribution,
                "version": record.version,
                "status": record.status,
                "error": record.error,
                "hooks": list(record.hooks),
                "models": list(record.models),
                "builtin": record.builtin,
            }
            for record in registry.records
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "distribution", "version", "status", "hooks", "models")
    for record in registry.records:
        colour = {"ok": "green", "disabled": "yellow", "quarantined": "red"}[record.status]
        table.add_row(
            record.name,
            record.distribution,
            record.version,
            f"[{colour}]{record.status}[/]",
            ", ".join(record.hooks),
            ", ".join(record.models),
        )
    console = Console()
    console.print(table)
    for record in registry.records:
        if record.error:
            console.print(f"{record.origin}: {record.error}", style="red", highlight=False, markup=False)
    for model, reason in registry.orphans.items():
        console.print(f"model {model}: {reason}", style="red", highlight=False, markup=False)
