"""One Valkey for all tests of the queue; every test has a queue name of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from wan_host.queue import EmbeddedServer, JobQueue, open_queue

_names = itertools.count(1)

OpenQueue = Callable[..., Awaitable[JobQueue]]


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedServer(tmp_path_factory.mktemp("server"))
    asyncio.run(server.start())
    yield server.url
    asyncio.run(server.stop())


@pytest.fixture(autouse=True)
def quick_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_host.queue.session._PAUSE", 0.005)


@pytest.fixture
def name() -> str:
    return f"queue{next(_names)}"


@pytest.fixture
async def redis(server_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(server_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def without_groups(server_url: str, redis: Redis) -> AsyncIterator[str]:
    """The address of a server that refuses consumer groups in scripts."""
    refused = ["-xreadgroup", "-xgroup", "-xack", "-xclaim", "-xautoclaim", "-xpending", "-xinfo"]
    await redis.execute_command("ACL", "SETUSER", "plain", "on", ">word", "~*", "+@all", *refused)
    yield server_url.replace("unix://", "unix://plain:word@")
    await redis.acl_deluser("plain")


@pytest.fixture
async def open_(server_url: str, name: str, tmp_path: Any) -> AsyncIterator[OpenQueue]:
    """Open the test's queue, as many times as there are workers."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(worker_id: str = "w1", url: str = server_url, **options: Any) -> JobQueue:
            options = {"lease_seconds": 30.0, "name": name} | options
            queue = await open_queue(url, data_dir=tmp_path, worker_id=worker_id, **options)
            stack.push_async_callback(queue.aclose)
            return queue

        yield open_one


@pytest.fixture
async def queue(open_: OpenQueue) -> JobQueue:
    return await open_()
