"""The queue over the Redis protocol: TCP, TLS, and the unix socket of the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError as RedisConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from wan_host.errors import QueueUnavailable, SettingsError
from wan_host.queue.embedded import EmbeddedServer, send
from wan_host.queue.transport import Backend, Reply, Transport, server_error

__all__ = ["EmbeddedTransport", "TcpTransport"]

_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 15.0
_HEALTH_SECONDS: Final = 15
_LONGEST_BLOCK: Final = 5.0
"""A job that is handed back wakes nobody, so that no blocking read may last much longer than this."""
_BLOCK_GRACE: Final = 5.0

_CODES: Final = {
    "NoScriptError": "NOSCRIPT",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "ClusterDownError": "CLUSTERDOWN",
}


class TcpTransport(Transport):
    """A connection by `redis.asyncio`, without its own retries: they would repeat commands whose answer was lost."""

    backend: ClassVar[Backend] = "redis"

    def __init__(self, url: str) -> None:
        """``url``: redis://, rediss:// or unix://; raises SettingsError if it is none of these."""
        super().__init__("")
        self._open(url)

    def _open(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            self.where = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
            self._client = self._connect(url, _ANSWER_SECONDS)
            self._blocking = self._connect(url, None)
        except ValueError:  # its text quotes the URL, and a password with it
            raise SettingsError("WAN_HOST_QUEUE_URL: its port, its database or an option in it cannot be read") from None

    @staticmethod
    def _connect(url: str, answer_seconds: float | None) -> Redis:
        keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
        return Redis.from_url(
            url,
            **keepalive,
            protocol=2,
            decode_responses=True,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=answer_seconds,
            health_check_interval=_HEALTH_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    async def execute(self, *command: str) -> Reply:
        """Send one command; see `Transport.execute`."""
        return await self._send(self._client, command)

    async def _send(self, client: Redis, command: tuple[str, ...]) -> Reply:
        self.commands += 1
        try:
            return await send(client, *command)
        except (AuthenticationError, NoPermissionError) as error:
            raise SettingsError(f"the queue server {self.where} refuses the credentials: {error}") from error
        except (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError) as error:
            if isinstance(error.__cause__, AuthenticationError | NoPermissionError):  # met while connecting
                raise SettingsError(f"the queue server {self.where} refuses the credentials: {error}") from error
            raise QueueUnavailable(f"the queue server {self.where} does not answer: {error or type(error).__name__}") from error
        except ResponseError as error:
            raise server_error(_full(error), where=self.where) from error
        except RedisError as error:
            raise QueueUnavailable(f"the queue server {self.where} answers strangely: {error}") from error

    async def wait(self, source: str, destination: str, seconds: float, idle: int) -> bool:
        """Block in BLMOVE until an entry comes; ``idle`` does not matter here."""
        del idle
        seconds = max(0.01, min(seconds, _LONGEST_BLOCK))
        command = ("BLMOVE", source, destination, "LEFT", "RIGHT", f"{seconds:.3f}")
        try:
            async with asyncio.timeout(seconds + _BLOCK_GRACE):
                return await self._send(self._blocking, command) is not None
        except TimeoutError as error:
            raise QueueUnavailable(f"the queue server {self.where} does not answer a blocking read") from error

    async def aclose(self) -> None:
        """Close both connections."""
        for client in (self._client, self._blocking):
            with contextlib.suppress(RedisError, OSError):
                await client.aclose()


class EmbeddedTransport(TcpTransport):
    """A connection to the embedded server, which it starts anew when it is gone."""

    backend: ClassVar[Backend] = "embedded"

    def __init__(self, server: EmbeddedServer) -> None:
        """``server`` must have been started; it is stopped with this transport if nobody else uses it."""
        super().__init__(server.url)
        self._server = server

    async def recover(self) -> None:
        """Start the server again, or connect to the one that another process has started."""
        await self._server.start()
        if self._server.url != self.where:
            await super().aclose()
            self._open(self._server.url)

    async def wait(self, source: str, destination: str, seconds: float, idle: int) -> bool:
        """Block until an entry comes, or return early when the server had to be started anew."""
        try:
            return await super().wait(source, destination, seconds, idle)
        except QueueUnavailable:
            await self.recover()
            return True

    def abandon(self) -> None:
        """Leave without waiting for anything."""
        self._server.abandon()

    async def aclose(self) -> None:
        """Close the connections, then leave the server."""
        await super().aclose()
        await self._server.stop()


def _full(error: ResponseError) -> str:
    """Return the server's message with its code, which redis-py cuts off for the errors that it has classes for."""
    message = str(error)
    name = type(error).__name__
    code = _CODES.get(name)
    return f"{code} {message}" if code and not message.startswith(code) else message
