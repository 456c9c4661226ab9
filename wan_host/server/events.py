"""The route of a job's events: server-sent, the latest first and last, until the job has ended."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from wan_host.server.access import TheWorker
from wan_host.server.jobs import JobId, known_job
from wan_host.server.problems import Problem, documented
from wan_host.server.watch import Watch

__all__ = ["router"]

_MOST_STREAMS = 1000
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "preview", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
    "required": ["event", "data"],
}
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
router = APIRouter(tags=["jobs"])


class EventStream(StreamingResponse):
    """Without the queues and tasks that FastAPI's own has for each reader: what is told is made once for all of them."""

    media_type = "text/event-stream"


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventStream,
    responses={
        200: {"description": "Events, with JSON in their data", "content": {"text/event-stream": {"schema": _EVENT}}},
        **documented(404, 422, 503),
    },
)
async def events(job_id: JobId, worker: TheWorker, request: Request) -> EventStream:
    """Stream what happens to a job, on whichever worker, until it has ended."""
    watch: Watch = request.app.state.watch
    if watch.readers >= _MOST_STREAMS:
        raise Problem(503, f"{_MOST_STREAMS} event streams are open already", headers={"Retry-After": "10"})
    if not watch.is_watched(job_id) and worker.run_of(job_id) is None:
        await known_job(worker, job_id)
    return EventStream(watch.follow(job_id), headers=_HEADERS)
