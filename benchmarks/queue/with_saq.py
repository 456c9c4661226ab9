"""saq: ``push`` the jobs, or ``work`` until stopped, with its defaults."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
from saq import Queue, Worker
from task import CONCURRENCY, JOBS, REDIS_URL, job_id, work_async


async def job(context: dict[str, Any], *, name: str) -> None:
    """Do one job."""
    await work_async(context["client"], name)


async def startup(context: dict[str, Any]) -> None:
    """Keep one HTTP client."""
    context["client"] = httpx.AsyncClient()


async def push() -> None:
    """Push the jobs."""
    queue = Queue.from_url(REDIS_URL)
    for number in range(JOBS):
        await queue.enqueue("job", name=job_id(number), key=job_id(number))
    await queue.disconnect()


async def run() -> None:
    """Work until stopped."""
    await Worker(Queue.from_url(REDIS_URL), functions=[job], startup=startup, concurrency=CONCURRENCY).start()


if __name__ == "__main__":
    asyncio.run(push() if sys.argv[1] == "push" else run())
