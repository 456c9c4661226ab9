"""A queue of a test's own: the real server and the real scripts, behind calls that block."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from wan_host.queue import EmbeddedServer, JobQueue, open_queue
from wan_host.queue.records import JobState

T = TypeVar("T")
_TICK = 0.05
_LEASE_SECONDS = 30.0


class LocalQueue:
    """The queue of a data folder, which workers of the same folder share; use it with ``with``."""

    def __init__(self, data_dir: Path) -> None:
        """``data_dir`` is made if it is not there."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self._data_dir = data_dir
        self._server = EmbeddedServer(data_dir)

    @property
    def url(self) -> str:
        """The server's address, for ``WAN_HOST_QUEUE_URL`` and for clients of Redis."""
        return self._server.url

    def push(self, payload: Mapping[str, Any] | str) -> None:
        """Push a job, or any other text, as a producer does."""
        text = payload if isinstance(payload, str) else json.dumps(payload)
        self.ask(lambda queue: queue.push(text))

    def state(self, job_id: str) -> JobState | None:
        """Return what the queue knows of a job."""
        return self.ask(lambda queue: queue.job(job_id))

    def wait_for(self, job_id: str, *statuses: str, seconds: float = 60) -> JobState:
        """Wait until a job has one of these statuses. Raises TimeoutError that says what it has instead."""
        until = time.monotonic() + seconds
        while True:
            state = self.state(job_id)
            if state is not None and state.status in statuses:
                return state
            if time.monotonic() > until:
                raise TimeoutError(f"{job_id} is not {' or '.join(statuses)} within {seconds} s, but {state}")
            time.sleep(_TICK)

    def ask(self, question: Callable[[JobQueue], Awaitable[T]]) -> T:
        """Open the queue for one question, as any method of JobQueue answers it."""

        async def asked() -> T:
            options = {"worker_id": "test", "lease_seconds": _LEASE_SECONDS}
            queue = await open_queue(self.url, data_dir=self._data_dir, **options)  # type: ignore[arg-type]  # of these types
            try:
                return await question(queue)
            finally:
                await queue.aclose()

        return asyncio.run(asked())

    def __enter__(self) -> Self:
        """Start the server, or join the one that the folder has."""
        asyncio.run(self._server.start())
        return self

    def __exit__(self, *_: object) -> None:
        """Leave; the server ends with the last process that leaves it."""
        asyncio.run(self._server.stop())
