"""Opening the queue that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wan_host.queue import JobQueue, open_queue
from wan_host.settings import Settings

LEASE_SECONDS = {"embedded": 30.0, "redis": 30.0, "upstash": 180.0}
"""Defaults: short where renewals are free, long where every command is billed."""


async def connect(settings: Settings) -> JobQueue:
    """Open the queue. Raises SettingsError and QueueUnavailable."""
    backend = "redis" if settings.queue_url else "upstash" if settings.upstash_redis_rest_url else "embedded"
    token = settings.upstash_redis_rest_token
    return await open_queue(
        settings.queue_url,
        data_dir=settings.data_dir,
        name=settings.queue_name,
        worker_id=settings.worker_id,
        lease_seconds=settings.lease_seconds or LEASE_SECONDS[backend],
        entry_limit=settings.max_entry_bytes,
        fair_users=settings.fair_users,
        upstash_url=settings.upstash_redis_rest_url,
        upstash_token=token.get_secret_value() if token else None,
    )


@asynccontextmanager
async def queue_connection(settings: Settings) -> AsyncIterator[JobQueue]:
    """Open the queue for a while: for commands that look at it or push to it."""
    queue = await connect(settings)
    try:
        yield queue
    finally:
        await queue.aclose()
