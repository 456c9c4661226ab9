"""arq: ``push`` the jobs, or ``work`` until stopped, with its defaults."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import run_worker
from task import JOBS, REDIS_URL, job_id, work_async


async def job(context: dict[str, Any], name: str) -> None:
    """Do one job."""
    await work_async(context["client"], name)


async def startup(context: dict[str, Any]) -> None:
    """Keep one HTTP client."""
    context["client"] = httpx.AsyncClient()


class WorkerSettings:
    """What arq wants to know; everything else is its default."""

    functions = (job,)
    on_startup = startup
    redis_settings = RedisSettings.from_dsn(REDIS_URL)


async def push() -> None:
    """Push the jobs."""
    pool = await create_pool(WorkerSettings.redis_settings)
    for number in range(JOBS):
        await pool.enqueue_job("job", job_id(number), _job_id=job_id(number))
    await pool.aclose()


if __name__ == "__main__":
    if sys.argv[1] == "push":
        asyncio.run(push())
    else:
        asyncio.set_event_loop(asyncio.new_event_loop())  # arq asks for the current one
        run_worker(WorkerSettings)
