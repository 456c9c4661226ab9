"""Watching jobs: what is told of a job is made once for all who look at it, and only while somebody does.

Nothing here is called by a run. A ticker looks at the runs of this worker, and asks the queue about jobs that run elsewhere
or wait. A reader gets the latest there is, as fast as it reads, and never what it has missed: one that does not read at all costs
what the system buffers for it. All readers together get a bounded number of events a second.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from fastapi.sse import format_sse_event
from PIL import Image
from pydantic import BaseModel

from wan_host.errors import WanHostError
from wan_host.queue import JobState
from wan_host.run import Run
from wan_host.server.answers import ENDED, JobProgress, Preview
from wan_host.server.views import job_answer, progress_of
from wan_host.server.waits import Wait, Waits
from wan_host.worker import Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TICK_SECONDS = 0.25
_FAULT_SECONDS = 5.0
_ASK_SECONDS = {"embedded": 0.5, "redis": 0.5, "upstash": 10.0}
"""How often the queue is asked about watched jobs: every question is billed over REST."""
_EVENTS_A_SECOND = 50
"""To all readers together, so that what they cost does not grow with their number."""
_KEEP_ALIVE_SECONDS = 15.0
_FORGOTTEN_ANSWERS = 3
"""So often in a row the queue must not know a job that is watched until its streams end."""
_PREVIEW_SIDE = 512
_KEEP_ALIVE = b": still there\n\n"
log = structlog.get_logger("wan_host.http")


@dataclass(slots=True, eq=False)
class _Watched:
    """A job that somebody looks at: its latest events, ready to be sent, each with a number that rises."""

    job_id: str
    readers: int = 0
    told: JobProgress | None = None
    number: int = 0
    progress: bytes = b""
    previews: int = 0
    preview: bytes = b""
    end: bytes = b""
    asked: float = float("-inf")
    unknown: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, progress: JobProgress) -> None:
        """Make an event of what has changed."""
        if progress == self.told:
            return
        self.told = progress
        self.number += 1
        self.progress = _event("progress", progress, number=self.number)
        self.wake()

    def wake(self) -> None:
        """Let the readers look."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Watch:
    """The jobs that somebody looks at. One instance serves a worker."""

    def __init__(self, worker: Worker) -> None:
        """Nobody looks yet."""
        self._worker, self.waits = worker, Waits(worker)
        self._closed = asyncio.Event()
        self._jobs: dict[str, _Watched] = {}
        self._ticker: asyncio.Task[None] | None = None
        self.readers = 0
        """How many streams are open."""

    def is_watched(self, job_id: str) -> bool:
        """Tell whether somebody looks at a job already."""
        return job_id in self._jobs

    def close(self) -> None:
        """End every stream whose reader reads."""
        self._closed.set()
        for job in self._jobs.values():
            job.wake()

    async def follow(self, job_id: str) -> AsyncIterator[bytes]:
        """Yield a job's events until it has ended or is forgotten, at the pace of the reader."""
        job = self._jobs.setdefault(job_id, _Watched(job_id))
        job.readers += 1
        self.readers += 1
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._keep_looking())
        number = previews = 0
        try:
            while not self._closed.is_set():
                changed = job.changed
                if job.number != number:
                    number = job.number
                    yield job.progress
                if job.previews != previews:
                    previews = job.previews
                    yield job.preview
                if job.end:
                    yield job.end
                    return
                if job.unknown >= _FORGOTTEN_ANSWERS:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), self.readers / _EVENTS_A_SECOND)
                try:
                    await asyncio.wait_for(changed.wait(), _KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield _KEEP_ALIVE
        finally:
            self.readers -= 1
            job.readers -= 1
            if not job.readers and self._jobs.get(job_id) is job:
                del self._jobs[job_id]

    async def _keep_looking(self) -> None:
        try:
            while self._jobs:
                try:
                    await self._look()
                except WanHostError as error:  # the queue is away: what is known stays, and readiness tells
                    log.debug("watched jobs are not known for now", error=str(error))
                except Exception:
                    log.exception("watched jobs cannot be told")
                    await asyncio.sleep(_FAULT_SECONDS)
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._ticker = None

    async def _look(self) -> None:
        runs = {run.job_id: run for run in self._worker.runs()}
        elsewhere = []
        for job in list(self._jobs.values()):
            run = runs.get(job.job_id)
            if run is not None:
                job.tell(_of_run(run))
                job.asked = float("-inf")  # the moment it is gone from here the queue knows more
                if run.preview is not None and run.previews != job.previews:
                    await _show(job, run.preview, run)
            else:
                elsewhere.append(job)
        queue = self._worker.queue
        if queue is None:
            return
        due = [job for job in elsewhere if time.monotonic() - job.asked >= _ASK_SECONDS[queue.backend]]
        if due:
            await self._ask(due)

    async def _ask(self, jobs: Sequence[_Watched]) -> None:
        """Ask the queue about jobs that do not run here."""
        queue = self._worker.queue
        if queue is None:
            return
        for job in jobs:
            job.asked = time.monotonic()
        states = await queue.states([job.job_id for job in jobs])
        waits = await self.waits.of(queue, [state.job_id for state in states.values() if state.status == "waiting"])
        for job in jobs:
            state = states.get(job.job_id)
            if state is None:
                job.unknown += 1
                if job.unknown >= _FORGOTTEN_ANSWERS:
                    self._jobs.pop(job.job_id, None)
                    job.wake()
                continue
            job.unknown = 0
            job.tell(_of_state(state, waits.get(job.job_id)))
            if state.status in ENDED:
                full = await queue.job(job.job_id)
                job.end = _event("end", job_answer(full or state))
                self._jobs.pop(job.job_id, None)  # who looks from now on looks at what a retry makes of it
                job.wake()


def _of_run(run: Run) -> JobProgress:
    left = run.time_left()
    return JobProgress(
        job_id=run.job_id,
        status="running",
        attempt=run.attempt,
        stage=run.stage,
        step=run.step,
        total=run.total,
        seconds_left=None if left is None else round(left, 1),
    )


def _of_state(state: JobState, wait: Wait | None) -> JobProgress:
    told, left = progress_of(state), state.progress.get("seconds_left")
    return JobProgress(
        job_id=state.job_id,
        status=state.status,
        attempt=state.attempts,
        stage=told.stage,
        step=told.step,
        total=told.total,
        seconds_left=left if isinstance(left, int | float) and state.status == "running" else None,
        queue_position=wait.position if wait is not None else None,
        seconds_until_start=wait.seconds if wait is not None else None,
    )


async def _show(job: _Watched, picture: NDArray[np.uint8], run: Run) -> None:
    number, step = run.previews, run.step
    data, width, height = await asyncio.to_thread(_as_jpeg, picture)
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    job.previews, job.preview = number, _event("preview", Preview(step=step, width=width, height=height, image=uri))
    job.wake()


def _as_jpeg(picture: NDArray[np.uint8]) -> tuple[bytes, int, int]:
    """Return a picture, made small if it is not, as a file, and its size."""
    image = Image.fromarray(picture)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue(), image.width, image.height


def _event(name: str, data: BaseModel, *, number: int | None = None) -> bytes:
    return format_sse_event(data_str=data.model_dump_json(), event=name, id=None if number is None else str(number))
