"""``wan-host workers``."""

from __future__ import annotations

import time

import click


@click.command()
def workers() -> None:
    """List the workers that share the queue: alive or not, on what device, doing what, since when."""
    from wan_host.cli.jobs import ask_queue
    from wan_host.cli.tables import print_table

    rows = []
    for worker in ask_queue(lambda queue: queue.workers()):
        about = worker.about
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(worker.since))
        doing = about.get("doing") or ", ".join(f"{job}: {status}" for job, status in worker.jobs.items())
        alive = "yes" if worker.alive else "no"
        rows.append(
            (worker.worker_id, alive, since, about.get("devices", ""), doing, about.get("version", ""), about.get("url", ""))
        )
    print_table(("worker", "alive", "since", "devices", "doing", "version", "url"), rows)
