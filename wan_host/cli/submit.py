"""``wan-host submit``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wan_host.batch import Batch, BatchJob
    from wan_host.cli.progress import BatchBar
    from wan_host.queue import JobQueue
    from wan_host.queue.records import JobState
    from wan_host.settings import Settings

WRONG_EXIT = 1
FAILED_EXIT = 2
INTERRUPTED_EXIT = 130
_POLL_SECONDS = 0.3
_BILLED_POLL_SECONDS = 10.0
_GOOD = frozenset({"published", "completed", "report_refused"})
_BAD = frozenset({"failed", "cancelled"})


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--wait", is_flag=True, help="Wait for the end of the jobs; a JSON line for each on standard output.")
@click.option("--skip-invalid", is_flag=True, help="Push the right jobs although others are wrong.")
def submit(file: IO[bytes], *, wait: bool, skip_invalid: bool) -> None:
    """Push the jobs in FILE (or - for standard input) to the queue, and print their ids.

    The file holds one JSON object, an array of them, or one on each line. An object may have a grid, which makes a job of
    every combination of its values: see docs/operations.md. Jobs are checked as far as that is possible without the worker's
    models; if one is wrong none is pushed.

    The same command again goes on where it stopped: jobs that wait, run or have ended well are not pushed again, those that
    failed or were cancelled are.

    Exit status: 1 if a job is wrong, 2 if one that was waited for failed.
    """
    from wan_host.batch import read_batch
    from wan_host.cli.setup import prepare_settings

    settings = prepare_settings(log_level="warning")
    batch = read_batch(file.read(), max_bytes=settings.max_entry_bytes)
    _show_problems(batch, file.name, skip_invalid=skip_invalid)
    try:
        states = asyncio.run(_submit(batch.jobs, settings, wait=wait))
    except KeyboardInterrupt:
        click.echo("interrupted; what was pushed stays in the queue, and the same command goes on from here", err=True)
        sys.exit(INTERRUPTED_EXIT)
    if any(state.status in _BAD for state in states.values()):
        sys.exit(FAILED_EXIT)
    sys.exit(WRONG_EXIT if batch.problems else 0)


def _show_problems(batch: Batch, name: str, *, skip_invalid: bool) -> None:
    """Name every wrong line, and end the command unless the others are wanted all the same."""
    if not batch.problems:
        return
    if not batch.jobs and len(batch.problems) == 1:
        click.echo(f"wan-host: {batch.problems[0].message}", err=True)
        sys.exit(WRONG_EXIT)
    for problem in batch.problems:
        click.echo(f"{name}:{problem.place}: {problem.message}", err=True)
    if not skip_invalid:
        good = f"; {len(batch.jobs)} jobs are right, --skip-invalid pushes those" if batch.jobs else ""
        click.echo(f"wan-host: {len(batch.problems)} entries are wrong, nothing was pushed{good}", err=True)
        sys.exit(WRONG_EXIT)


async def _submit(jobs: Sequence[BatchJob], settings: Settings, *, wait: bool) -> Mapping[str, JobState]:
    """Push what the queue does not have; return how the jobs ended that were waited for."""
    from wan_host.cli.progress import BatchBar
    from wan_host.connection import queue_connection

    async with queue_connection(settings) as queue:
        await queue.take_in()
        known = await queue.states([job.id for job in jobs])
        await _refuse_other_jobs(queue, jobs, known)
        new = [job for job in jobs if job.id not in known or known[job.id].status in _BAD]
        with BatchBar(len(jobs)) as bar:
            bar.update("pushing", len(jobs) - len(new))
            cancelled = {job.id for job in new if job.id in known and known[job.id].status == "cancelled"}
            again = {job_id for job_id in cancelled if await queue.retry(job_id)}  # pushed, their ends would only be told again
            await queue.push(*(job.text for job in new if job.id not in again))
            await queue.take_in()
            if not wait:
                bar.update("pushed", len(jobs))
        before = Counter("ended well" if state.status in _GOOD else state.status for state in known.values())
        there = ", ".join(f"{count} {status}" for status, count in sorted(before.items()))
        click.echo(f"{len(jobs)} jobs: {len(new)} pushed{f'; before that: {there}' if there else ''}", err=True)
        if not wait:
            click.echo("\n".join(job.id for job in jobs))
            return {}
        with BatchBar(len(jobs)) as bar:
            ended = await _watch(queue, [job.id for job in jobs], bar)
    counts = Counter(state.status for state in ended.values())
    click.echo(", ".join(f"{count} {status}" for status, count in sorted(counts.items())), err=True)
    for state in ended.values():
        if state.status in _BAD:
            click.echo(f"{state.job_id}: {state.status}: {(state.error or {}).get('message', '')}", err=True)
    return ended


async def _refuse_other_jobs(queue: JobQueue, jobs: Sequence[BatchJob], known: Mapping[str, JobState]) -> None:
    """Raise InvalidJob where the queue has another job under an id: it would be taken for this one."""
    from wan_host.batch import same_payload
    from wan_host.errors import InvalidJob

    for job in jobs:
        state = known.get(job.id)
        if state is None or state.status == "failed" or job.is_job(state.digest):
            continue
        whole = await queue.job(job.id)
        if whole is not None and not same_payload(whole.payload, job.text):
            raise InvalidJob("id", job.id, f"the queue has another job of that id ({state.status}); give this one its own")


async def _watch(queue: JobQueue, job_ids: Sequence[str], bar: BatchBar) -> Mapping[str, JobState]:
    """Wait until every job has ended; write a line for each as it does."""
    ended: dict[str, JobState] = {}
    left = list(job_ids)
    while True:
        states = await _known(queue, left)
        for job_id, state in states.items():
            if state.status in _GOOD | _BAD:
                ended[job_id] = state
                click.echo(json.dumps(_ending(state)))
        left = [job_id for job_id in left if job_id not in ended]
        running = [state for job_id, state in states.items() if job_id in left and state.progress]
        bar.update(_description(len(job_ids), left, running, ended), len(ended), sum(_part(state) for state in running))
        if not left:
            return ended
        await asyncio.sleep(_BILLED_POLL_SECONDS if queue.backend == "upstash" else _POLL_SECONDS)


async def _known(queue: JobQueue, job_ids: Sequence[str]) -> Mapping[str, JobState]:
    """Return the states of these jobs; raises ClickException if one is not known, nor among what is to be taken in."""
    states = await queue.states(job_ids)
    if any(job_id not in states for job_id in job_ids):
        await queue.take_in()
        states = await queue.states(job_ids)
    lost = next((job_id for job_id in job_ids if job_id not in states), None)
    if lost is not None:
        raise click.ClickException(f"the queue does not know job {lost} any more; the same command pushes it again")
    return states


def _description(total: int, left: Sequence[str], running: Sequence[JobState], ended: Mapping[str, JobState]) -> str:
    if total == 1:
        return str(running[0].progress.get("stage") or running[0].status) if running else "ended" if ended else "waiting"
    failed = sum(state.status in _BAD for state in ended.values())
    return f"{len(running)} running, {len(left) - len(running)} waiting, {failed} failed"


def _part(state: JobState) -> float:
    """Return which part of its steps a job has done."""
    total = int(state.progress.get("total") or 0)
    return min(1.0, int(state.progress.get("step") or 0) / total) if total else 0.0


def _ending(state: JobState) -> dict[str, Any]:
    return {
        "job_id": state.job_id,
        "status": state.status,
        "attempts": state.attempts,
        **({"error": dict(state.error)} if state.error else {}),
        **({"result": dict(state.result)} if state.result else {}),
    }
