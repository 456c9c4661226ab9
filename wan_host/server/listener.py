"""The HTTP server inside the worker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog
import uvicorn

from wan_host.errors import SettingsError
from wan_host.server.access import is_loopback
from wan_host.server.app import create_app
from wan_host.server.watch import Watch

if TYPE_CHECKING:
    from wan_host.worker import Worker

log = structlog.get_logger("wan_host.http")


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the worker decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the worker."""
        yield


class HttpServer:
    """Serves a worker's routes. The address is bound at construction, so that a taken port is an error at start."""

    def __init__(self, worker: Worker) -> None:
        """Bind the address of the settings. Raises SettingsError where that is not possible."""
        settings = worker.settings
        if settings.wan_worker_api_key is None and not is_loopback(settings.bind_host):
            raise SettingsError(
                f"WAN_HOST_HOST: {settings.bind_host!r} needs WAN_WORKER_API_KEY; without it only 127.0.0.1, ::1 and localhost do"
            )
        family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
        try:
            self._socket = socket.create_server((settings.bind_host, settings.port), family=family, backlog=1024)
            # asyncio does this for sockets that it has made itself; without it a kept connection waits 40 ms for every answer
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            address = f"{settings.bind_host}:{settings.port}"
            raise SettingsError(f"WAN_HOST_HOST, WAN_HOST_PORT: cannot listen on {address}: {error.strerror}") from error
        self.host, self.port = self._socket.getsockname()[:2]
        self._watch = Watch(worker)
        app = create_app(worker, self._watch)
        self._server = _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
            )
        )

    async def serve(self) -> None:
        """Answer requests until cancelled; what is being answered then may still end, for two seconds."""
        log.info("listening", host=self.host, port=self.port)
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self._watch.close()
            self._server.should_exit = True
            await serving
            raise
