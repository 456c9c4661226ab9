"""Who may do what: the key, the Origin of state-changing requests, the Host where there is no key, and how often."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wan_host.server.problems import Problem
from wan_host.settings import Settings
from wan_host.worker import Worker

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_bearer = HTTPBearer(auto_error=False, scheme_name="key", description="WAN_WORKER_API_KEY, where the worker has one")


async def the_worker(request: Request) -> Worker:
    """Return the worker that this server belongs to."""
    worker: Worker = request.app.state.worker
    return worker


TheWorker = Annotated[Worker, Depends(the_worker)]


async def require_key(
    request: Request,
    worker: TheWorker,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> None:
    """Let a request pass that has the key, or that comes from this machine where there is none; and no other site's."""
    settings = worker.settings
    key = settings.wan_worker_api_key
    if key is None:
        _check_host(request)
    else:
        given = credentials.credentials if credentials is not None else ""
        if not hmac.compare_digest(given.encode(), key.get_secret_value().encode()):
            raise Problem(
                401,
                "authorization: it must be 'Bearer', a space, and the worker's key (WAN_WORKER_API_KEY)",
                headers={"WWW-Authenticate": "Bearer"},
            )
    if request.method not in _SAFE_METHODS:
        _check_origin(request, settings)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(request: Request) -> None:
    """Refuse names that a stranger's DNS made point here: without a key, only this machine may ask."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # a broken address of version 6
        host = ""
    if not is_loopback(host):
        raise Problem(403, "host: without WAN_WORKER_API_KEY the worker answers to localhost and 127.0.0.1 only")


def _check_origin(request: Request, settings: Settings) -> None:
    """Refuse requests that a browser makes on behalf of another site."""
    origin = request.headers.get("origin")
    if origin is None:
        if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise Problem(403, "sec-fetch-site: requests of other sites are not allowed")
        return
    allowed = {item.split("://", 1)[-1] for item in (*settings.cors_origins, settings.url)}
    # the scheme does not count: a pod's proxy speaks https outside and http inside
    if origin.split("://", 1)[-1] not in {request.headers.get("host"), *allowed} - {"", None}:
        raise Problem(403, "origin: only the worker's own page and WAN_HOST_CORS_ORIGINS may change anything")


class RateLimit:
    """So many requests a minute, as many of them at once; further ones are told when to come again."""

    def __init__(self, per_minute: float) -> None:
        """``per_minute`` is above 0."""
        self._per_minute = per_minute
        self._size = max(1.0, per_minute)
        self._left, self._filled = self._size, time.monotonic()

    def take(self) -> None:
        """Count a request. Raises a 429 problem."""
        now = time.monotonic()
        self._left = min(self._size, self._left + (now - self._filled) * self._per_minute / 60)
        self._filled = now
        if self._left < 1:
            seconds = math.ceil((1 - self._left) * 60 / self._per_minute)
            raise Problem(
                429,
                f"at most {self._per_minute:g} requests a minute are taken; come again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )
        self._left -= 1


async def limit_submissions(request: Request) -> None:
    """Count a request to ``POST /jobs``."""
    request.app.state.submissions.take()


async def limit_enhancements(request: Request) -> None:
    """Count a request to ``POST /enhance``."""
    request.app.state.enhancements.take()
