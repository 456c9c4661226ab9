"""A receiver of reports on loopback: keeps what it is sent, and fails on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request: its headers in lower case, its raw body, and the body as JSON."""

    headers: dict[str, str]
    body: bytes
    report: dict[str, Any]


class Receiver:
    """An HTTP server for ``WAN_HOST_CALLBACK_URL``; use it with ``with``.

    ``answer`` decides the status of each request; None resets the connection instead of answering.
    """

    def __init__(self, answer: Callable[[Received], int | None] = lambda _: 200) -> None:
        """Listen on a free port of loopback."""
        self.received: list[Received] = []
        self.answer = answer
        self._arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Received(headers=headers, body=body, report=json.loads(body))
                status = receiver.answer(request)
                if status is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.keep(request, status)

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where to send reports."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/reports"

    def keep(self, request: Received, status: int) -> None:
        """Remember a request that was accepted."""
        if 200 <= status < 300:  # noqa: PLR2004  # the range of success
            with self._arrived:
                self.received.append(request)
                self._arrived.notify_all()

    def reports(self, job_id: str) -> list[dict[str, Any]]:
        """Return the accepted reports of a job, in the order of their arrival."""
        return [item.report for item in self.received if item.report["job_id"] == job_id]

    def wait_for(self, job_id: str, status: str, *, seconds: float = 60) -> dict[str, Any]:
        """Wait for a report of that status. Raises TimeoutError that says what arrived instead."""

        def found() -> dict[str, Any] | None:
            return next((report for report in self.reports(job_id) if report["status"] == status), None)

        with self._arrived:
            if not self._arrived.wait_for(lambda: found() is not None, seconds):
                seen = [
                    (item.report["job_id"], item.report["status"], item.report.get("error_message")) for item in self.received
                ]
                raise TimeoutError(f"no report {status!r} of {job_id} within {seconds} s; there were {seen}")
        report = found()
        if report is None:
            raise TimeoutError
        return report

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop and close."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
