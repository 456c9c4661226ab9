"""``wan-host jobs``."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable
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
def list_jobs(status: str | None, limit: int, *, dead: bool) -> None:
    """List jobs, newest first."""
    from rich.console import Console
    from rich.table import Table

    table = (
        Table("id", "reason", "when", "bytes", "error")
        if dead
        else Table("id", "status", "attempts", "queued", "progress", "worker", "error")
    )
    if dead:
        for letter in ask_queue(lambda queue: queue.dead_letters(limit)):
            message = (letter.error or {}).get("message", "")
            table.add_row(letter.job_id or letter.letter, letter.reason, _when(letter.at), str(letter.size), message)
    else:
        for job in ask_queue(lambda queue: queue.jobs(limit=limit, status=status)):
            progress = job.progress
            steps = f" {progress['step']}/{progress['total']}" if progress.get("total") else ""
            message = (job.error or {}).get("message", "")
            table.add_row(
                job.job_id,
                job.status,
                str(job.attempts),
                _when(job.queued_at),
                f"{progress.get('stage', '')}{steps}",
                job.worker,
                message,
            )
    Console().print(table)


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
