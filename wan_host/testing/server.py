"""A real HTTP server on loopback that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came in; header names are lower case. ``connection`` numbers the connections of the server."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send back. A body given in pieces is sent piece by piece without a length, and ends with the connection."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ScriptedServer:
    """Its address, and the requests so far. Assign ``answer`` to change what it says."""

    port: int
    answer: Callable[[Asked], Answer]
    tls: bool = False
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The root of the server, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def host(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def scripted_server(answer: Callable[[Asked], Answer], tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Serve on a free port of 127.0.0.1, over TLS if a server context is given, until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.script = ScriptedServer(server.server_address[1], answer, tls is not None)
    thread = threading.Thread(target=server.serve_forever, args=(_POLL,), daemon=True)
    thread.start()
    try:
        yield server.script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def trickling_server(head: bytes, piece: bytes, *, every: float) -> Iterator[str]:
    """Accept one connection, say ``head`` and then ``piece`` every so many seconds; yields the address as ``host:port``."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.sendall(head)
            while not stop.wait(every):
                connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.close()
        thread.join(1)


class _Server(ThreadingHTTPServer):
    block_on_close = False
    request_queue_size = 128
    script: ScriptedServer

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.connections = itertools.count()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients of tests break off on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection_number = next(self.server.connections)

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:  # one way for all methods
            setattr(self, f"do_{self.command}", self.respond)
        return parsed

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body, self.connection_number)
        self.server.script.asked.append(asked)
        answer = self.server.script.answer(asked)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        pieces: Iterable[bytes] = answer.body if not isinstance(answer.body, bytes) else (answer.body,)
        if not isinstance(answer.body, bytes):
            self.close_connection = True
        elif "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        try:
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
        except OSError:  # the client had enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Say nothing."""
