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
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.cli.tables import print_problem, print_table

    settings = prepare_settings(log_level="warning")
    registry = prepare_hooks(settings).registry
    default = registry.default_model(settings.model)
    rows = []
    for name, model in sorted(registry.models.items()):
        modes = ", ".join(mode.value for mode in sorted(model.reference_modes)) if model.kind == "generate" else "-"
        marked = f"{name} (default)" if name == default else name
        rows.append((marked, model.family, model.runner, ", ".join(model.job_types) or model.kind, modes, model.path))
    print_table(("model", "family", "runner", "job types", "reference modes", "path"), rows)
    for name, reason in registry.orphans.items():
        print_problem(f"model {name}: {reason}")
    if default is None:
        click.echo("Jobs must name a model: set WAN_HOST_MODEL to choose one for those that do not.")
    elif default not in registry.models:
        print_problem(f"WAN_HOST_MODEL: {default!r} is offered by no installed plugin")
