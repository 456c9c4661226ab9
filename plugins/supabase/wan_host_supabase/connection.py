"""HTTP connections that break off as soon as the work on them is no longer wanted.

A request can stand still for as long as its timeouts allow, and a server that dribbles keeps it for ever. So a thread asks the
context ten times a second and shuts the sockets down when it says stop; the request then fails at once, and whoever made it
asks the context why.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import httpx

import wan_host

if TYPE_CHECKING:
    from wan_host import HookContext

USER_AGENT = f"wan-host-supabase/{wan_host.__version__}"
_POLL = 0.1
_CONNECT_SECONDS = 5.0
_OPENED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})


@contextmanager
def watched_client(context: HookContext, timeout: float) -> Iterator[httpx.Client]:
    """Return a client of the caller's own whose requests end when ``context`` says stop; ``timeout`` bounds each standstill.

    Every request has a connection of its own: after an early refusal the storage server reads no further, and the next
    request on that connection would hang.
    """
    watch = _Watch(context)
    client = httpx.Client(
        headers={"Connection": "close", "User-Agent": USER_AGENT},
        timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        verify=trust(),
        event_hooks={"request": [watch.follow]},
    )
    with client, watch.running():
        yield client


@cache
def trust() -> ssl.SSLContext:
    """Return the trust store, loaded once: loading takes longer than a small request."""
    return httpx.create_ssl_context()


class _Watch:
    """Knows the sockets of a client, and shuts them down."""

    def __init__(self, context: HookContext) -> None:
        self._context = context
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()

    def follow(self, request: httpx.Request) -> None:
        """Have the transport tell of every connection that it opens."""
        request.extensions["trace"] = self._note

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event in _OPENED:
            self._sockets.append(details["return_value"].get_extra_info("socket"))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch until the block ends."""
        thread = threading.Thread(target=self._watch, name="wan-host-supabase-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_POLL):
            if not _wanted(self._context.check):
                for opened in list(self._sockets):
                    # The plain socket's method: that of a TLS socket drops the encryption first, while others still write.
                    with contextlib.suppress(OSError, ValueError):
                        socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _wanted(check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception:  # noqa: BLE001  # whatever it raises means stop; the caller's own check raises it again
        return False
    return True
