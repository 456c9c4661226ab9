"""``wan-host jobs``."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from wan_host.queue import JobQueue

T = TypeVar("T")


@click.group()
def jobs() -> None:
    """List, show, cancel and retry jobs."""


def ask_queue(question: Callable[[JobQueue], Awaitable[T]]) -> T:
    """Open the queue for one question."""
    from wan_host.cli.setup import prepare_settings
    from wan_host.connection import queue_connection

    settings = prepare_settings(log_level="warning")

    async def ask() -> T:
        async with queue_connection(settings) as queue:
            return await question(queue)

    return asyncio.run(ask())


@jobs.command("list")
@click.option("--status", help="Only waiting, claimed, running, published, completed, report_refused, failed or cancelled ones.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--dead", is_flag=True, help="Show the dead letters instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_jobs(status: str | None, limit: int, *, dead: bool, as_json: bool) -> None:
    """List jobs, newest first."""
    if dead:
        letters = ask_queue(lambda queue: queue.dead_letters(limit))
        header: tuple[str, ...] = ("id", "reason", "when", "bytes", "error")
        rows: list[tuple[str, ...]] = [
            (letter.job_id or letter.letter, letter.reason, _when(letter.at), str(letter.size), _message(letter.error))
            for letter in letters
        ]
        _print_list(letters, header, rows, as_json=as_json)
    else:
        states = ask_queue(lambda queue: queue.jobs(limit=limit, status=status))
        header = ("id", "status", "attempts", "queued", "progress", "worker", "error")
        rows = [
            (
                job.job_id,
                job.status,
                str(job.attempts),
                _when(job.queued_at),
                _progress(job.progress),
                job.worker,
                _message(job.error),
            )
            for job in states
        ]
        _print_list(states, header, rows, as_json=as_json)


def _print_list(items: Sequence[Any], header: Sequence[str], rows: Sequence[Sequence[str]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(item) for item in items], indent=2, default=dict))
        return
    from wan_host.cli.tables import print_table

    print_table(header, rows)


def _message(error: Mapping[str, Any] | None) -> str:
    return str((error or {}).get("message", ""))


def _progress(progress: Mapping[str, Any]) -> str:
    steps = f" {progress['step']}/{progress['total']}" if progress.get("total") else ""
    return f"{progress.get('stage', '')}{steps}"


@jobs.command("show")
@click.argument("job_id")
def show_job(job_id: str) -> None:
    """Print all that the queue knows of a job, as JSON."""
    state = ask_queue(lambda queue: queue.job(job_id))
    if state is None:
        raise click.ClickException(f"no job {job_id!r} is known; `wan-host jobs list` shows those of the last 7 days")
    shown: dict[str, Any] = dataclasses.asdict(state)
    shown["payload"] = _parsed(state.payload)
    click.echo(json.dumps(shown, indent=2, default=dict))


@jobs.command("cancel")
@click.argument("job_id")
def cancel_job(job_id: str) -> None:
    """Cancel a job that waits or runs."""
    answer = ask_queue(lambda queue: queue.cancel(job_id))
    messages = {
        "cancelled": "cancelled before it started",
        "cancelling": "its worker has been told; it stops within a step",
        "finished": "it has ended already",
        "unknown": "no such job is known",
    }
    if answer in {"finished", "unknown"}:
        raise click.ClickException(f"{job_id}: {messages[answer]}")
    click.echo(f"{job_id}: {messages[answer]}")


@jobs.command("retry")
@click.argument("job_id")
def retry_job(job_id: str) -> None:
    """Run a failed or cancelled job anew (a dead letter), or send a refused report again."""
    if not ask_queue(lambda queue: queue.retry(job_id)):
        raise click.ClickException(f"{job_id}: no failed or cancelled job and no refused report of that id")
    click.echo(f"{job_id}: queued again")


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
