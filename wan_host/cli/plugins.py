"""``wan-host plugins``."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(*, as_json: bool) -> None:
    """List every plugin that is installed: distribution, version, status, hooks, models, and what is wrong with it."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings

    settings = prepare_settings(log_level="warning")
    hooks = prepare_hooks(settings)
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
    from wan_host.cli.tables import print_problem, print_table

    print_table(
        ("plugin", "distribution", "version", "status", "hooks", "models"),
        [
            (
                record.name,
                record.distribution,
                record.version,
                record.status,
                ", ".join(record.hooks),
                ", ".join(record.models),
            )
            for record in registry.records
        ],
    )
    for record in registry.records:
        if record.error:
            print_problem(f"{record.origin}: {record.error}")
    for model, reason in registry.orphans.items():
        print_problem(f"model {model}: {reason}")
    for reason in registry.missing(settings.required_plugins).values():
        print_problem(reason)
