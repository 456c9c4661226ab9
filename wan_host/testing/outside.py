"""The world outside of the workers, in one HTTP server that fails: references to fetch, a store to fill, a receiver of reports.

    with Outside(Faults(seed=7, rate=0.2)) as outside:
        outside.references["1.png"] = png          # GET  {outside.url}/references/1.png
        ...                                        # PUT  {outside.url}/store/{key}
        ...                                        # POST {outside.url}/reports

Whatever it answers, it remembers what took effect: a fault *after* the effect is one that the caller cannot tell from one before.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Fault = Literal["none", "reset", "error", "reset_after", "error_after", "slow", "hang"]
_WEIGHTS: dict[Fault, int] = {"reset": 4, "error": 5, "reset_after": 4, "error_after": 4, "slow": 2, "hang": 1}
_SLOW_SECONDS = 0.7


class Faults:
    """Decides the fault of each request by the seed, by what is asked for, and by how often it was asked for before."""

    def __init__(self, *, seed: int, rate: float, hang_seconds: float = 6.0) -> None:
        """``rate``: the share of requests that fail; ``hang_seconds``: longer than any client should wait."""
        self.seed, self.rate, self.hang_seconds = seed, rate, hang_seconds
        self.made: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next(self, what: str) -> Fault:
        """Draw the fault of the next request for ``what``."""
        with self._lock:
            self._asked[what] += 1
            dice = random.Random(f"{self.seed}/{what}/{self._asked[what]}")  # noqa: S311  # a replay, no secret
            if dice.random() >= self.rate:
                return "none"
            fault = dice.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
            self.made[fault] += 1
            return fault


@dataclass(frozen=True, slots=True)
class Arrival:
    """A report that arrived. ``accepted``: it was answered with 200, or at least it should have been."""

    report: dict[str, Any]
    key: str
    accepted: bool


class Outside:
    """The server; use it with ``with``. Its books may be read at any time."""

    def __init__(self, faults: Faults) -> None:
        """Listen on a free port of loopback."""
        self.faults = faults
        self.references: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[tuple[str, bytes]] = []
        self.arrivals: list[Arrival] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.outside = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def address(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The root, without a slash at the end."""
        return f"http://{self.address}"

    def effect(self, method: str, path: str, body: bytes, key: str) -> tuple[int, bytes]:
        """Do what was asked; return status and body of the answer."""
        if method == "GET" and path.startswith("/references/"):
            picture = self.references.get(path.removeprefix("/references/"))
            return (200, picture) if picture is not None else (404, b"")
        if method == "PUT" and path.startswith("/store/"):
            name = path.removeprefix("/store/")
            self.objects[name] = body
            self.puts.append((name, body))
            return 200, str(len(body)).encode()
        if method == "POST" and path == "/reports":
            self.arrivals.append(Arrival(json.loads(body), key, accepted=True))
            return 200, b"{}"
        return 404, b""

    def note_refused(self, path: str, body: bytes, key: str) -> None:
        """Remember a report that was not taken: it still tells that a run has started."""
        if path == "/reports":
            self.arrivals.append(Arrival(json.loads(body), key, accepted=False))

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop; requests that hang are let go."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    block_on_close = False
    daemon_threads = True
    request_queue_size = 128
    outside: Outside

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients die on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        outside = self.server.outside
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client died in the middle
            self.close_connection = True
            return
        key = self.headers.get("Idempotency-Key", "")
        fault = outside.faults.next(f"{self.command} {self.path} {key}")
        if fault == "slow":
            outside.closing.wait(_SLOW_SECONDS)
        if fault in {"reset", "error", "hang"}:
            outside.note_refused(self.path, body, key)
        if fault == "hang":
            outside.closing.wait(outside.faults.hang_seconds)
        if fault in {"reset", "hang"}:
            self._reset()
            return
        status, answer = (503, b"") if fault == "error" else outside.effect(self.command, self.path, body, key)
        if fault == "reset_after":
            self._reset()
            return
        if fault == "error_after":
            status, answer = 502, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _reset(self) -> None:
        """Break the connection off with an RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Say nothing."""
