"""Tables and lines on standard output: for a terminal as wide as it is, for a pipe as wide as they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_COLUMNS = 1000
_COLOURS = {"ok": "green", "disabled": "yellow", "quarantined": "red", "yes": "green", "no": "red"}


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print texts of strangers as they stand: nothing in them is markup, and nothing is cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    _console().print(table)


def print_problem(text: str) -> None:
    """Print a line that somebody has to do something about."""
    _console().print(text, style="red", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_COLUMNS)
