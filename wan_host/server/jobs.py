"""The routes of jobs: submit, list, read, cancel, retry."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from wan_host.batch import Batch, expand_batch, parse_json
from wan_host.errors import InvalidJob, WanHostError
from wan_host.payload import ID_PATTERN
from wan_host.queue import JobQueue, JobState
from wan_host.server.access import TheWorker, limit_submissions
from wan_host.server.answers import (
    CancelAnswer,
    FullJobAnswer,
    JobsAnswer,
    JobStatus,
    RetryAnswer,
    Submitted,
    SubmittedAnswer,
    WorkersAnswer,
)
from wan_host.server.problems import FieldProblem, Problem, documented
from wan_host.server.views import full_job_answer, job_answer, worker_answer
from wan_host.server.waits import Waits
from wan_host.stages import resolve
from wan_host.worker import Worker

__all__ = ["JobId", "known_job", "queue_of", "router"]

_MOST_JOBS = 1000
"""In one request; a longer list is several."""
_MOST_BYTES = 64 << 20
"""Of the texts of a request's jobs: a grid makes many large ones of a small body."""
_ONE_OR_MANY = {
    "oneOf": [
        {"$ref": "#/components/schemas/Payload"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Payload"}, "minItems": 1, "maxItems": _MOST_JOBS},
    ]
}
JobId = Annotated[str, Path(pattern=f"^{ID_PATTERN}$", description="The job's id")]
router = APIRouter(tags=["jobs"])


def queue_of(worker: Worker) -> JobQueue:
    """Return the worker's queue. Raises a 503 problem before there is one."""
    if worker.queue is None:
        raise Problem(503, "queue: not connected yet", error_type="queue_unavailable", headers={"Retry-After": "2"})
    return worker.queue


async def known_job(worker: Worker, job_id: str) -> JobState:
    """Return a job's state. Raises a 404 problem."""
    state = await queue_of(worker).job(job_id)
    if state is None:
        raise Problem(404, f"id: no job {job_id!r} is known; those of the last 7 days are")
    return state


@router.post(
    "/jobs",
    status_code=202,
    dependencies=[Depends(limit_submissions)],
    responses=documented(400, 413, 422, 429, 503),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _ONE_OR_MANY}}}},
)
async def submit(request: Request, worker: TheWorker) -> SubmittedAnswer:
    """Submit a job, or a list of jobs: all of them, or none and a 422 that says what is wrong with which.

    After a 503 some of a list may be queued. The same request again is safe, because the ids are the same: what is queued is not
    queued twice.

    They are checked as the worker does when it takes them: fields, ranges, and what its models can do. An entry without an id
    gets one that follows from its content; an entry with a ``grid`` stands for one job per combination.
    """
    queue = queue_of(worker)
    body = await request.body()
    async with request.app.state.reading:  # one at a time, so that many at once take neither all the memory nor all the threads
        batch = await asyncio.to_thread(_read, body, worker)
    ids = [job.id for job in batch.jobs]
    earlier = await queue.states(ids)
    await queue.push(*(job.text for job in batch.jobs))
    known = {job_id: state.status for job_id, state in earlier.items()}
    return SubmittedAnswer(
        jobs=[
            Submitted.model_validate(
                {"id": job_id, "known": known.get(job_id), "url": f"/jobs/{job_id}", "events": f"/jobs/{job_id}/events"}
            )
            for job_id in ids
        ]
    )


@router.get("/jobs", responses=documented(422, 503))
async def list_jobs(
    worker: TheWorker,
    status: Annotated[JobStatus | None, Query(description="Only jobs of this status, among the newest 10,000")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobsAnswer:
    """List jobs of the whole queue, newest first."""
    runs = {run.job_id: run for run in worker.runs()}
    queue = queue_of(worker)
    await queue.take_in()  # workers that are all busy do not, and what was pushed meanwhile would be missing
    states = await queue.jobs(limit=limit, status=status)
    return JobsAnswer(jobs=[job_answer(state, runs.get(state.job_id)) for state in states])


@router.get("/jobs/{job_id}", responses=documented(404, 422, 503))
async def read_job(job_id: JobId, worker: TheWorker, request: Request) -> FullJobAnswer:
    """Tell all that is known of a job."""
    state = await known_job(worker, job_id)
    waits: Waits = request.app.state.watch.waits
    waiting = await waits.of(queue_of(worker), [job_id]) if state.status == "waiting" else {}
    return full_job_answer(state, worker.run_of(job_id), waiting.get(job_id))


@router.delete("/jobs/{job_id}", status_code=202, responses=documented(404, 409, 422, 503))
async def cancel_job(job_id: JobId, worker: TheWorker) -> CancelAnswer:
    """Cancel a job that waits or runs, on whichever worker."""
    outcome = await worker.cancel_job(queue_of(worker), job_id)
    if outcome == "unknown":
        raise Problem(404, f"id: no job {job_id!r} is known")
    if outcome == "finished":
        raise Problem(409, f"job {job_id} has ended already")
    return CancelAnswer.model_validate({"id": job_id, "outcome": outcome})


@router.post("/jobs/{job_id}/retry", status_code=202, responses=documented(404, 409, 422, 503))
async def retry_job(job_id: JobId, worker: TheWorker) -> RetryAnswer:
    """Run a failed or cancelled job anew, or send a refused report again."""
    before = await known_job(worker, job_id)
    if not await queue_of(worker).retry(job_id):
        raise Problem(409, f"job {job_id} is {before.status}; only failed and cancelled ones and refused reports are retried")
    return RetryAnswer(id=job_id, status="published" if before.status == "report_refused" else "waiting")


@router.get("/workers", responses=documented(503))
async def list_workers(worker: TheWorker) -> WorkersAnswer:
    """List the workers of this queue that were seen within a day."""
    return WorkersAnswer(workers=[worker_answer(state) for state in await queue_of(worker).workers()])


def _read(body: bytes, worker: Worker) -> Batch:
    """Return the jobs of a body. Raises a 400 or 422 problem that names every entry that is wrong."""
    try:
        given = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"body: it must be JSON: {error}") from None
    entries = given if isinstance(given, list) else [given]
    if not 0 < len(entries) <= _MOST_JOBS:
        raise Problem(422, f"body: {len(entries)} jobs; a list has 1 to {_MOST_JOBS}", error_type="invalid_job")
    batch = expand_batch(
        enumerate(entries, start=1),
        max_bytes=worker.settings.max_entry_bytes,
        max_jobs=_MOST_JOBS,
        max_total_bytes=_MOST_BYTES,
    )
    wrong = [(item.place, item.message, InvalidJob.error_type) for item in batch.problems]
    for job in batch.jobs:
        try:
            resolve(job.payload, hooks=worker.hooks, settings=worker.settings, seed=0)
        except WanHostError as error:
            wrong.append((job.place, str(error), error.error_type))
    if wrong:
        wrong.sort(key=lambda item: item[0])
        problems = [FieldProblem(entry=place, detail=detail) for place, detail, _ in wrong]
        raise Problem(422, wrong[0][1], error_type=wrong[0][2], errors=problems)
    return batch
