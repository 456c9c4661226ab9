"""Progress bars: one job with its stages and steps, or a batch with its counts."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """One job's bar on standard error; use it with ``with``."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.fields[steps]:>7}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("start", total=None, steps="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def update(self, stage: str, step: int, total: int) -> None:
        """Show a stage and, where there are steps, how many are done."""
        steps = f"{step}/{total}" if total else ""
        self._progress.update(self._task, description=stage, completed=step, total=total or None, steps=steps)


class BatchBar:
    """A batch's bar on standard error; use it with ``with``."""

    def __init__(self, total: int) -> None:
        """``total``: how many jobs there are."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("start", total=total, done=0)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def update(self, text: str, done: int, parts: float = 0.0) -> None:
        """Show how many jobs are done, and ``parts``, what is done of the others."""
        self._progress.update(self._task, description=text, completed=done + parts, done=done)
