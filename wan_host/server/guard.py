"""What stands around every route: body limits, security headers, and the form of errors that no route has made."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_host.server.problems import PROBLEM_TYPE, Problem, document

SMALL_BODY_BYTES = 64 * 1024
"""For every route but ``POST /jobs``: none needs more."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""A route that needs another value sets it itself."""


class Guard:
    """Plain ASGI, so that streams pass through it untouched."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        """``max_body_bytes``: for ``POST /jobs``."""
        self._app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_body_bytes if scope["path"] == "/jobs" else SMALL_BODY_BYTES
        answer = _Answer(send)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > limit:
            await answer.problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit), {"connection": "close"})
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit), headers={"connection": "close"})
            return message

        await self._app(scope, counted, answer.send)


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Pass a message on, with our headers; a bare error becomes a problem."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if message["status"] >= HTTPStatus.BAD_REQUEST and "json" not in headers.get("content-type", ""):
                self._replaced = True
                kept = {name: headers[name] for name in ("allow", "content-range") if name in headers}
                await self.problem(message["status"], _DETAILS.get(message["status"], HTTPStatus(message["status"]).phrase), kept)
                return
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        if not self._replaced:
            await self._send(message)

    async def problem(self, status: int, detail: str, headers: dict[str, str]) -> None:
        """Answer with a problem."""
        body = json.dumps(document(status, detail)).encode()
        own = {**_HEADERS, "content-type": PROBLEM_TYPE, "content-length": str(len(body)), **headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in own.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


_DETAILS = {416: "range: it must lie within the file, whose size is in content-range"}


def _too_large(limit: int) -> str:
    return f"body: more than {limit} bytes are not allowed"
