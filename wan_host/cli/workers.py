"""``wan-host workers``."""

from __future__ import annotations

import time

import click


@click.command()
def workers() -> None:
    """List the workers that share the queue: alive or not, on what device, doing what, since when."""
    from rich.console import Console
    from rich.table import Table

    from wan_host.cli.jobs import ask_queue

    table = Table("worker", "alive", "since", "devices", "doing", "version", "url")
    for worker in ask_queue(lambda queue: queue.workers()):
        about = worker.about
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(worker.since))
        doing = about.get("doing") or ", ".join(f"{job}: {status}" for job, status in worker.jobs.items())
        alive = "[green]yes[/]" if worker.alive else "[red]no[/]"
        table.add_row(
            worker.worker_id, alive, since, about.get("devices", ""), doing, about.get("version", ""), about.get("url", "")
        )
    Console().print(table)
