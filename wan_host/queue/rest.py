"""The queue over Upstash's REST interface: no blocking reads, every command an HTTP request that is counted and billed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import ClassVar, Final
from urllib.parse import urlsplit

import httpx
from upstash_redis.asyncio import Redis
from upstash_redis.errors import UpstashError

from wan_host.errors import QueueUnavailable, SettingsError
from wan_host.queue.transport import Backend, Reply, Sleep, Transport, server_error

__all__ = ["RestTransport"]

_ANSWER_SECONDS: Final = 20.0
_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 12.5
"""An idle worker polls 288 times an hour; with the quicker polls after the last job it stays under 300."""
_GROWTH: Final = 1.6
_LASTING_CODES: Final = ("WRONGTYPE", "NOSCRIPT", "WANHOST", "NOPERM", "WRONGPASS", "NOAUTH")
_LASTING_WORDS: Final = ("unknown command", "wrong number of arg", "is not available", "request size", "script:", "ing script")
"""What no repetition mends: commands that are not there, requests that are too large, scripts that fail."""


class RestTransport(Transport):
    """A connection by the official client, with its own retries off: they would repeat a command whose answer was lost."""

    backend: ClassVar[Backend] = "upstash"
    billed: ClassVar[bool] = True

    def __init__(self, url: str, token: str, *, sleep: Sleep = asyncio.sleep) -> None:
        """``url``, ``token``: as in the Upstash console; raises SettingsError if the URL is none."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError("UPSTASH_REDIS_REST_URL: an address that begins with https:// is needed")
        super().__init__(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        self._client = Redis(url.rstrip("/"), token.strip(), rest_retries=0, allow_telemetry=False)
        self._sleep = sleep
        self._nudged = asyncio.Event()

    async def execute(self, *command: str) -> Reply:
        """Send one command; see `Transport.execute`. The client itself has no timeout and looks at no HTTP status."""
        self.commands += 1
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._client.execute(list(command))
        except UpstashError as error:
            raise self._refusal(str(error)) from error
        except TimeoutError as error:
            raise QueueUnavailable(f"the queue server {self.where} did not answer within {_ANSWER_SECONDS:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise QueueUnavailable(f"the queue server {self.where} cannot be reached: {error or type(error).__name__}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            # What the client raises when a gateway answers for the database: HTML, JSON of another form, errors that are objects.
            raise QueueUnavailable(f"the queue server {self.where} answers no Upstash JSON: {type(error).__name__}") from error

    def _refusal(self, message: str) -> Exception:
        if "unauthorized" in message.lower():
            return SettingsError(f"the queue server {self.where} refuses UPSTASH_REDIS_REST_TOKEN: {message}")
        lasting = message.startswith(_LASTING_CODES) or any(words in message for words in _LASTING_WORDS)
        if not lasting:  # a gateway's own trouble comes as ERR, too
            return QueueUnavailable(f"the queue server {self.where} cannot work now: {message}")
        return server_error(message, where=self.where)

    async def wait(self, source: str, destination: str, seconds: float, idle: int) -> bool:
        """Sleep, the longer the more polls found nothing: from 2 s up to 12.5 s, or until `nudge`.

        ``seconds`` does not matter: whoever polls more often than that leaves the budget.
        """
        del source, destination, seconds
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * _GROWTH ** min(idle, 20))
        if self._nudged.is_set():
            self._nudged.clear()
            return True
        nudged = asyncio.ensure_future(self._nudged.wait())
        slept = asyncio.ensure_future(self._sleep(pause))
        try:
            await asyncio.wait({nudged, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
            slept.cancel()
        came = self._nudged.is_set()
        self._nudged.clear()
        return came

    def nudge(self) -> None:
        """End a running `wait`: this process has pushed an entry itself."""
        self._nudged.set()

    async def aclose(self) -> None:
        """Close the HTTP connections."""
        with contextlib.suppress(httpx.HTTPError, OSError, RuntimeError):
            await self._client.close()
