"""Commands that plugins add."""

from __future__ import annotations

from functools import lru_cache

import click

from wan_host.cli.setup import prepare_hooks, prepare_settings


@lru_cache
def plugin_commands(group: str) -> dict[str, click.Command]:
    """Return the plugins' commands of a group (empty: the top level), by name; the first plugin that offers a name has it."""
    hooks = prepare_hooks(prepare_settings(log_level="warning"))
    found: dict[str, click.Command] = {}
    for offered in hooks.add_commands():
        if offered.group == group and offered.command.name is not None:
            found.setdefault(offered.command.name, offered.command)
    return found


class ExtensibleGroup(click.Group):
    """A group of the host to which plugins add commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the host's commands and the plugins'."""
        return sorted({*super().list_commands(ctx), *plugin_commands(str(self.name))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the host's command, else a plugin's."""
        return super().get_command(ctx, cmd_name) or plugin_commands(str(self.name)).get(cmd_name)
