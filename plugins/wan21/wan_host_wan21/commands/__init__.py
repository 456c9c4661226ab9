"""Commands below ``wan-host models``: fetch, make and convert checkpoints. Heavy modules are imported when one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import PluginCommand

if TYPE_CHECKING:
    from collections.abc import Iterator


def offered_commands() -> Iterator[PluginCommand]:
    """Return the commands."""
    from wan_host_wan21.commands.convert import import_
    from wan_host_wan21.commands.fake import fake
    from wan_host_wan21.commands.pull import pull

    for command in (pull, fake, import_):
        yield PluginCommand(command=command, group="models")
