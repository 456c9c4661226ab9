"""Reporting by HTTP: every report is posted as JSON, signed if a secret is set."""

from __future__ import annotations

import json
import logging
import threading
from http.client import responses
from typing import TYPE_CHECKING

import wan_host
from wan_host.errors import SettingsError
from wan_host.hookspecs import hookimpl
from wan_host.report import Delivery, parse_retry_after

if TYPE_CHECKING:
    import httpx

    from wan_host.context import HookContext
    from wan_host.report import Report

_TRY_AGAIN = frozenset({408, 425, 429})
_SERVER_FAULT = 500
_ANSWER_LIMIT = 64 << 10


class HttpCallback:
    """Posts reports to one URL over kept connections. Safe from several threads; ``close`` drops the connections.

    ``secret`` signs the raw body, ``bearer`` goes into Authorization; neither is ever shown. ``timeout`` is in seconds.
    """

    def __init__(self, url: str, secret: str | None, bearer: str | None, timeout: float) -> None:
        """Open nothing yet. Raises SettingsError for a bearer that no header can carry."""
        if bearer is not None and not (bearer.isascii() and bearer.isprintable()):
            raise SettingsError("callback bearer: (hidden) is not allowed; it must be printable ASCII in one line")
        self._url, self._secret, self._bearer, self._timeout = url, secret, bearer, timeout
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Name the class alone: the URL may hold credentials, too."""
        return "HttpCallback()"

    @hookimpl
    def deliver_report(self, report: Report, context: HookContext) -> Delivery:
        """Post the report; a network fault, 408, 425, 429 or 5xx is worth a retry, any other answer but 2xx is final."""
        import httpx

        body = report.body()
        context.check()
        timeout = max(0.01, min(self._timeout, context.remaining()))
        try:
            with self._connected().stream(
                "POST", self._url, content=body, headers=self._headers(report, body), timeout=timeout
            ) as response:
                return _judge(response, context)
        except httpx.TimeoutException as error:
            return Delivery(outcome="retry", note=f"no answer within {timeout:.3g} s ({type(error).__name__})")
        except httpx.ConnectError as error:  # the system's words: refused, unknown name, certificate
            return Delivery(outcome="retry", note=f"no connection: {error}")
        except httpx.InvalidURL:
            return Delivery(outcome="refused", note="the callback URL is not valid")
        except httpx.HTTPError as error:  # other texts may quote headers
            return Delivery(outcome="retry", note=f"the exchange failed ({type(error).__name__})")

    def close(self) -> None:
        """Drop the connections; a later delivery opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None:
                logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs at INFO
                self._client = httpx.Client(follow_redirects=False)
            return self._client

    def _headers(self, report: Report, body: bytes) -> dict[str, str]:
        headers = {**report.headers(body, self._secret), "User-Agent": f"wan-host/{wan_host.__version__}"}
        if self._bearer is not None:
            headers["Authorization"] = f"Bearer {self._bearer}"
        return headers


def _judge(response: httpx.Response, context: HookContext) -> Delivery:
    status = response.status_code
    note = f"{status} {responses.get(status, '')}".rstrip()
    if response.is_success:
        skipped = _skipped(_beginning(response, context))
        return Delivery(outcome="accepted", note=f"{note}, but the receiver skipped it" if skipped else note)
    if status in _TRY_AGAIN or status >= _SERVER_FAULT:
        return Delivery(outcome="retry", note=note, retry_after=parse_retry_after(response.headers.get("retry-after")))
    if response.is_redirect:
        note += "; redirects are not followed, set the final address"
    return Delivery(outcome="refused", note=note)


def _beginning(response: httpx.Response, context: HookContext) -> bytes:
    """Read the answer up to a limit: what stands there decides nothing but a note, a fault in it is no failed delivery."""
    import httpx

    answer = b""
    try:
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > _ANSWER_LIMIT or context.remaining() <= 0:
                break
    except httpx.HTTPError:
        return b""
    return answer


def _skipped(answer: bytes) -> bool:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("skipped") is True
