"""``wan-host submit``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import IO, Any

import click

FAILED_EXIT = 2
_POLL_SECONDS = 0.3
_ENDED = frozenset({"published", "completed", "report_refused", "failed", "cancelled"})


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--wait", is_flag=True, help="Wait for the end of the job, with its progress; exit status 2 if it failed.")
def submit(file: IO[bytes], *, wait: bool) -> None:
    """Push the job in FILE (or - for standard input) to the queue, and print its id.

    The file holds one JSON object. It is checked as far as that is possible without the worker's models.
    """
    from wan_host.cli.setup import prepare_settings
    from wan_host.payload import parse_payload

    settings = prepare_settings(log_level="warning")
    text = file.read()
    payload = parse_payload(text)

    async def push() -> dict[str, Any] | None:
        from wan_host.connection import queue_connection

        async with queue_connection(settings) as queue:
            await queue.push(json.dumps(json.loads(text), separators=(",", ":")))
            click.echo(payload.id)
            return await _watch(queue, payload.id) if wait else None

    ended = asyncio.run(push())
    if ended is not None:
        click.echo(json.dumps(ended, indent=2))
        sys.exit(0 if ended["status"] in {"published", "completed"} else FAILED_EXIT)


async def _watch(queue: Any, job_id: str) -> dict[str, Any]:
    from wan_host.cli.progress import ProgressBar

    with ProgressBar() as bar:
        while True:
            state = await queue.job(job_id)
            if state is None:
                raise click.ClickException(f"job {job_id} is not known to the queue")
            if state.status in _ENDED:
                break
            progress = state.progress
            bar.update(progress.get("stage") or state.status, int(progress.get("step") or 0), int(progress.get("total") or 0))
            await asyncio.sleep(_POLL_SECONDS)
    return {
        "job_id": job_id,
        "status": state.status,
        "attempts": state.attempts,
        **({"error": dict(state.error)} if state.error else {}),
        **({"result": dict(state.result)} if state.result else {}),
    }
