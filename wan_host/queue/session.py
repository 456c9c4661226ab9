"""One process's connection to one queue: it runs scripts, repeats them safely, and knows whether the server lost its memory."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

import structlog

from wan_host.errors import QueueUnavailable
from wan_host.queue.keys import RETENTION_SECONDS, checked_name
from wan_host.queue.scripts import load_script
from wan_host.queue.transport import Backend, Reply, Sleep, Transport

__all__ = ["Session", "as_json", "log"]

log = structlog.get_logger("wan_host.queue")

_PAUSE: Final = 0.1


def as_json(value: Mapping[str, Any] | None) -> str:
    """Return strict JSON in ASCII, "" for None; raises ValueError for NaN and infinities, which no receiver could read."""
    return "" if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))


class Session:
    """What every operation of the queue needs."""

    def __init__(
        self,
        transport: Transport,
        *,
        name: str,
        worker_id: str,
        lease_seconds: float,
        retention_seconds: int = RETENTION_SECONDS,
        sleep: Sleep,
    ) -> None:
        """``name``: the producers' list; ``lease_seconds``: how long a claim lasts without renewal."""
        self.name = checked_name(name)
        self.worker_id = worker_id
        self.lease_seconds = lease_seconds
        self._transport = transport
        self._retention = str(retention_seconds)
        self._lease = str(max(1, round(lease_seconds * 1000)))
        self._sleep = sleep
        self._requests, self._numbers = uuid.uuid4().hex, itertools.count()

    @property
    def backend(self) -> Backend:
        """How the queue is reached."""
        return self._transport.backend

    @property
    def where(self) -> str:
        """The server's address, without credentials."""
        return self._transport.where

    @property
    def commands(self) -> int:
        """Commands sent so far: over REST one HTTP request each."""
        return self._transport.commands

    async def ping(self) -> None:
        """Return when the server answers; raises QueueUnavailable when it does not."""
        await self._transport.execute("PING")

    def abandon(self) -> None:
        """Leave at once, because the process is about to end: an embedded server of ours ends, all else is left as it is."""
        self._transport.abandon()

    async def aclose(self) -> None:
        """Close the connection; the embedded server ends with the last process that leaves it."""
        await self._transport.aclose()

    async def _run(self, script: str, *args: str) -> Reply:
        """Run a script; when its answer is lost, ask once more with the same request id, so that nothing happens twice."""
        request = f"{self._requests}-{next(self._numbers)}"
        try:
            return await self._run_once(script, *args, request=request)
        except QueueUnavailable as error:
            log.warning("queue request is repeated", script=script, error=str(error))
        await self._transport.recover()
        await self._sleep(_PAUSE)
        return await self._run_once(script, *args, request=request)

    async def _run_once(self, script: str, *args: str, request: str = "") -> Reply:
        """Run a script without a second try."""
        return await self._transport.evaluate(load_script(script), self.name, (request, self._retention, *args))
