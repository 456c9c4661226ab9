"""``wan-host run``."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import click

SECOND_SIGNAL_EXIT = 130
IDLE_EXIT = 3


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where queue, spool, outputs and models live.")
@click.option(
    "--queue-url", help="redis://, rediss:// or unix://; the default is Upstash if its variables are set, else embedded."
)
@click.option("--devices", help="'all', or names such as cuda:0,cuda:1 or cpu.")
@click.option("--host", help="Address to listen on; loopback only, unless WAN_WORKER_API_KEY is set.")
@click.option("--port", type=int, help="Port of the HTTP server (7860); 0 takes a free one.")
@click.option("--model", help="Model for jobs that name none.")
@click.option("--once", is_flag=True, help="Stop when the queue is empty and everything is delivered.")
@click.option("--drain", is_flag=True, help="Take no jobs: deliver what is finished here and what reports are due, then stop.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log for people or for machines.")
def run(*, once: bool, drain: bool, **flags: object) -> None:
    """Take jobs from the queue, run them, publish the files and report, until stopped.

    SIGTERM and ctrl-C stop in good order: no new jobs, running ones end within the grace time or are handed back. A second
    ctrl-C stops at once. SIGUSR1 drains: no new jobs, running ones end in their own time.
    """
    from wan_host.cli.setup import check_job_types, check_publisher, prepare_hooks, prepare_settings, warn_of_no_model
    from wan_host.server.listener import HttpServer
    from wan_host.worker import Worker

    settings = prepare_settings(flags)
    hooks = prepare_hooks(settings)
    check_publisher(settings, hooks)
    warn_of_no_model(hooks)
    check_job_types(settings, hooks)

    async def main() -> int:
        worker = Worker(settings=settings, hooks=hooks, once=once)
        server = HttpServer(worker)
        loop = asyncio.get_running_loop()
        if drain:
            worker.drain()

        def stop() -> None:
            if worker.stopping:
                sys.stderr.write("wan-host: stopped at once; leases of running jobs run out by themselves\n")
                worker.abandon()
                os._exit(SECOND_SIGNAL_EXIT)
            worker.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGUSR1, worker.drain)
        await worker.run(server.serve)
        return IDLE_EXIT if worker.idle_too_long else 0

    gc.freeze()  # what was imported stays: the collector need not walk through it again for every few hundred jobs
    sys.exit(asyncio.run(main()))
