"""The command line. Commands are imported when they are called: ``--help`` costs what click costs, and no more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

_COMMANDS = {
    "run": "Take jobs from the queue, until stopped.",
    "generate": "Generate from a prompt, here and now, without a queue.",
    "submit": "Push a job, or a batch of them, to the queue.",
    "jobs": "List, show, cancel and retry jobs.",
    "workers": "List the workers that share the queue.",
    "models": "List models; plugins add commands to get them.",
    "plugins": "List plugins: versions, hooks, models, errors.",
    "plugin": "Make a plugin, and test one.",
    "doctor": "Check this machine and say what to mend.",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of the same name, and that asks plugins for those it does not have."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the host's own commands, without importing them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import the command; for a name the host does not have, ask the plugins."""
        if cmd_name in _COMMANDS:
            command = getattr(importlib.import_module(f"wan_host.cli.{cmd_name}"), cmd_name)
            return command if isinstance(command, click.Command) else None
        from wan_host.cli.extensions import plugin_commands

        return plugin_commands("").get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """List the commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's signature
    if value:
        from wan_host import __version__

        click.echo(f"wan-host {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog="Settings: WAN_HOST_* in the environment, or wan-host.toml. See docs/operations.md.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def cli() -> None:
    """Run a worker host for GPU video generation: jobs in, plugins, files and reports out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; expected errors are one line on standard error, with exit status 1."""
    from wan_host.errors import WanHostError

    try:
        cli.main(args=arguments, prog_name="wan-host")
    except WanHostError as error:
        click.echo(f"wan-host: {error}", err=True)
        sys.exit(1)
