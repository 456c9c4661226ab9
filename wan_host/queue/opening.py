"""Which queue: by URL, by the Upstash variables, or our own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wan_host.errors import SettingsError
from wan_host.queue.embedded import EmbeddedServer
from wan_host.queue.jobqueue import JobQueue
from wan_host.queue.keys import DEFAULT_ENTRY_LIMIT, DEFAULT_NAME, MOVED_A_POLL, RETENTION_SECONDS, checked_name
from wan_host.queue.tcp import EmbeddedTransport, TcpTransport
from wan_host.queue.transport import Sleep, Transport

__all__ = ["open_queue"]

_SCHEMES = ("redis://", "rediss://", "unix://")


async def open_queue(
    url: str | None,
    *,
    data_dir: Path,
    name: str = DEFAULT_NAME,
    worker_id: str,
    lease_seconds: float,
    upstash_url: str | None = None,
    upstash_token: str | None = None,
    entry_limit: int = DEFAULT_ENTRY_LIMIT,
    moved_a_poll: int = MOVED_A_POLL,
    fair_users: bool = False,
    retention_seconds: int = RETENTION_SECONDS,
    sleep: Sleep = asyncio.sleep,
) -> JobQueue:
    """Connect to the queue: at ``url`` if given, else over Upstash REST if both its variables are, else embedded in ``data_dir``.

    Raises SettingsError for a URL of another kind, refused credentials or a queue that a newer version wrote, QueueUnavailable
    if the server does not answer. ``lease_seconds``: over REST 180 keeps the renewals at one command a minute.
    """
    checked_name(name)
    transport: Transport
    if url:
        if not url.startswith(_SCHEMES):
            raise SettingsError(f"WAN_HOST_QUEUE_URL: {url.split('://', 1)[0]!r} is not allowed; {', '.join(_SCHEMES)} are")
        transport = TcpTransport(url)
    elif upstash_url and upstash_token:
        from wan_host.queue.rest import RestTransport

        transport = RestTransport(upstash_url, upstash_token, sleep=sleep)
    elif upstash_url or upstash_token:
        raise SettingsError("UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN must be set both, or neither")
    else:
        server = EmbeddedServer(data_dir)
        await server.start()
        transport = EmbeddedTransport(server)
    queue = JobQueue(
        transport,
        name=name,
        worker_id=worker_id,
        lease_seconds=lease_seconds,
        entry_limit=entry_limit,
        moved_a_poll=moved_a_poll,
        fair_users=fair_users,
        retention_seconds=retention_seconds,
        sleep=sleep,
    )
    try:
        await queue.depth()  # the address, the credentials, the schema, and whether the server runs scripts
    except BaseException:
        await transport.aclose()
        raise
    return queue
