"""A bridge that speaks Upstash's documented REST protocol in front of a real Redis or Valkey, for tests.

It is written from the protocol's documentation and from what the official clients send, and it is strict: what the real
service refuses is refused here (blocking commands, wrong tokens, oversized requests, malformed bodies). Faults can be planted.

    async with upstash_bridge("redis://127.0.0.1:6379") as bridge:
        Redis(bridge.url, bridge.token)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import uvicorn
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

MAX_REQUEST_BYTES = 10 * 1024 * 1024
UNAVAILABLE = {
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "CLIENT",
    "CLUSTER",
    "CONFIG",
    "DISCARD",
    "EXEC",
    "MONITOR",
    "MULTI",
    "SHUTDOWN",
    "UNWATCH",
    "WAIT",
    "WATCH",
}


@dataclass
class Fault:
    """What happens to one request instead of its answer; ``after``: the command is done all the same.

    ``kind``: ``reset`` (the connection is cut), ``hang`` (no answer until the client gives up), ``html`` (a gateway's page),
    ``error`` (an answer in Upstash's form with this ``status`` and ``message``), ``json`` (JSON of another form).
    """

    kind: Literal["reset", "hang", "html", "error", "json"]
    after: bool = False
    status: int = 500
    message: Any = "ERR internal error"


@dataclass
class Bridge:
    """A running bridge: where it is, what it was asked, and the faults that the next requests meet."""

    redis: Redis
    token: str
    url: str = ""
    requests: list[list[str]] = field(default_factory=list)
    """The commands of every HTTP request, as their names in upper case."""
    faults: deque[Fault] = field(default_factory=deque)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer as an ASGI application."""
        if scope["type"] != "http":
            return
        fault = self.faults.popleft() if self.faults else None
        body = await _body(receive)
        if fault is None or fault.after:
            status, answer = await self._answer(scope, body)
        if fault is None:
            await _reply(send, status, json.dumps(answer).encode())
        elif fault.kind == "hang":
            await receive()
        elif fault.kind == "reset":
            # An application that raises in the middle of an answer makes the server cut the connection.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
        elif fault.kind == "html":
            await _reply(send, fault.status, b"<html>Bad Gateway</html>", b"text/html")
        elif fault.kind == "error":
            await _reply(send, fault.status, json.dumps({"error": fault.message}).encode())
        else:
            await _reply(send, fault.status, json.dumps(fault.message).encode())

    async def _answer(self, scope: dict[str, Any], body: bytes) -> tuple[int, Any]:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
        given = dict(query).get("_token") or headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 401, {"error": "WRONGPASS invalid or missing auth token"} if given else {"error": "Unauthorized"}
        if scope["method"] not in {"GET", "POST", "PUT", "HEAD"}:
            return 405, {"error": "ERR method not allowed"}
        if len(body) > MAX_REQUEST_BYTES:
            return 413, {"error": f"ERR max request size exceeded. Limit: {MAX_REQUEST_BYTES} bytes, Actual: {len(body)} bytes"}
        encode = headers.get("upstash-encoding") == "base64"
        path = scope["raw_path"].decode().split("?", 1)[0].strip("/")
        try:
            if path in {"pipeline", "multi-exec"}:
                commands = [_command(command) for command in _array(body)]
                self.requests.append([command[0].decode().upper() for command in commands])
                return await (self._pipeline if path == "pipeline" else self._transaction)(commands, encode=encode)
            if path:
                command = [unquote(part).encode() for part in path.split("/")]
                command += [body] if body else []
                command += [part.encode() for pair in query if pair[0] != "_token" for part in pair if part]
            else:
                command = _command(_array(body))
        except ValueError as error:
            return 400, {"error": f"ERR {error}"}
        self.requests.append([command[0].decode().upper()])
        answer = await self._execute(self.redis, command, encode=encode)
        return 400 if "error" in answer else 200, answer

    async def _pipeline(self, commands: list[list[bytes]], *, encode: bool) -> tuple[int, Any]:
        return 200, [await self._execute(self.redis, command, encode=encode) for command in commands]

    async def _transaction(self, commands: list[list[bytes]], *, encode: bool) -> tuple[int, Any]:
        async with self.redis.client() as connection:
            connection.response_callbacks.clear()
            await connection.execute_command("MULTI")
            for command in commands:
                queued = await self._execute(connection, command, encode=False)
                if "error" in queued:
                    await connection.execute_command("DISCARD")
                    return 400, queued
            results = await connection.execute_command("EXEC")
        return 200, [_told(result) if isinstance(result, Exception) else {"result": _shown(result, encode)} for result in results]

    async def _execute(self, client: Redis, command: list[bytes], *, encode: bool) -> dict[str, Any]:
        name = command[0].decode("utf-8", "replace").upper()
        blocking = name in {"XREAD", "XREADGROUP"} and any(part.upper() == b"BLOCK" for part in command[:8])
        if name in UNAVAILABLE or blocking:
            page = "https://upstash.com/docs/redis/overall/rediscompatibility"
            return {"error": f"ERR Command is not available: '{name}'. See {page} for details"}
        try:
            return {"result": _shown(await client.execute_command(*command), encode)}
        except RedisError as error:
            return _told(error)


def _told(error: Exception) -> dict[str, Any]:
    message = str(error)
    if isinstance(error, NoScriptError) and not message.startswith("NOSCRIPT"):
        message = f"NOSCRIPT {message}"
    coded = message.split(" ", 1)[0].isupper()
    return {"error": message if coded or not isinstance(error, ResponseError) else f"ERR {message}"}


def _shown(result: Any, encode: bool) -> Any:  # noqa: FBT001
    if isinstance(result, bytes):
        if not encode:
            return result.decode("utf-8", "replace")
        return "OK" if result == b"OK" else base64.b64encode(result).decode()
    if isinstance(result, list | tuple):
        return [_shown(part, encode) for part in result]
    return result


def _array(body: bytes) -> list[Any]:
    try:
        array = json.loads(body)
    except ValueError:
        raise ValueError("failed to parse command: invalid JSON") from None
    if not isinstance(array, list) or not array:
        raise ValueError("failed to parse command: a non-empty JSON array is needed")
    return array


def _command(array: Any) -> list[bytes]:
    if not (isinstance(array, list) and array and isinstance(array[0], str)):
        raise ValueError("failed to parse command: a command is an array that begins with its name")
    parts = []
    for part in array:
        if type(part) not in {str, int, float}:
            raise ValueError(f"failed to parse command: an argument is {type(part).__name__}, not a string or a number")
        parts.append(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else str(part).encode())
    return parts


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _reply(send: Any, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"upstash-sync-token", b"MTo0Mg=="),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def upstash_bridge(redis_url: str, *, token: str = "test-token") -> AsyncIterator[Bridge]:
    """Serve the database at ``redis_url`` on a free port of this host."""
    redis = Redis.from_url(redis_url, protocol=2)
    redis.response_callbacks.clear()
    bridge = Bridge(redis, token)
    server = uvicorn.Server(
        uvicorn.Config(bridge, host="127.0.0.1", port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    server.install_signal_handlers = lambda: None
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        bridge.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield bridge
    finally:
        server.should_exit = True
        await serving
        await redis.aclose()
