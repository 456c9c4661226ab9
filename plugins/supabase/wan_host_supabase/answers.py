"""What the services answer, and what it means: refused for good, or worth another try.

The storage service sends its own errors as HTTP 400 with the true status in the body; resumable uploads, gateways and functions
send true statuses, some with plain text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import responses
from typing import Any

import httpx

from wan_host import parse_retry_after

_SHOWN_CHARACTERS = 200
_TRY_AGAIN = frozenset({408, 423, 425, 429})
_SERVER_FAULT = 500


class Passing(Exception):
    """A fault that may pass. ``retry_after`` is in seconds, 0 where the server did not say."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        """``text`` is written for the person who reads the report."""
        super().__init__(text)
        self.retry_after = retry_after


class Unheard(Passing):
    """No whole answer came back: what was asked for may have been done, or not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no success: the true status, and the service's own words."""

    status: int
    error: str = ""
    message: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """Read a response whose body has been read."""
        return cls.read(response, response.content)

    @classmethod
    def read(cls, response: httpx.Response, body: bytes) -> Answer:
        """Read a response by the part of its body that is at hand."""
        status, wait = response.status_code, parse_retry_after(response.headers.get("retry-after"))
        said = json_object(body)
        if said is None:
            plain = response.headers.get("content-type", "").startswith("text/plain")
            return cls(status, message=body.decode(errors="replace") if plain else "", retry_after=wait)
        if status == httpx.codes.BAD_REQUEST:
            status = _number(said.get("statusCode"), status)
        words = [said[name] for name in ("error", "details") if isinstance(said.get(name), str)]
        message = next((said[name] for name in ("message", "msg") if isinstance(said.get(name), str)), ": ".join(words))
        return cls(status, str(said.get("code") or said.get("error") or ""), message, wait)

    @property
    def may_pass(self) -> bool:
        """Tell whether the same request may be answered otherwise later."""
        return self.status in _TRY_AGAIN or self.status >= _SERVER_FAULT

    def says(self, *words: str) -> bool:
        """Tell whether one of the words stands in the answer."""
        text = f"{self.error} {self.message}".lower()
        return any(word.lower() in text for word in words)

    def passing(self, who: str) -> Passing:
        """Return the fault to raise where it may pass."""
        return Passing(f"{who} answered {self}", self.retry_after or 0.0)

    def __str__(self) -> str:
        """Show status and words in one line."""
        words = "".join(character if character.isprintable() else " " for character in self.message).strip()
        shown = f"{words[:_SHOWN_CHARACTERS]}..." if len(words) > _SHOWN_CHARACTERS else words
        return f"{self.status} {shown or responses.get(self.status, '')}".rstrip()


def unheard(error: httpx.HTTPError, who: str, timeout: float) -> Passing:
    """Turn a fault of the connection into Unheard, or into Passing where nothing can have been sent."""
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return Passing(f"{who} cannot be reached: no connection in time")
    if isinstance(error, httpx.ConnectError):
        return Passing(f"{who} cannot be reached: {error}")  # the system's words: refused, unknown name, certificate
    if isinstance(error, httpx.TimeoutException):
        return Unheard(f"{who} stood still for {timeout:g} s ({type(error).__name__})")
    return Unheard(f"the connection to {who} broke off ({type(error).__name__})")  # other texts may quote headers


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the body where it is a JSON object."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _number(value: object, default: int) -> int:
    try:
        return int(str(value))
    except ValueError:
        return default
