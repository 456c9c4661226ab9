"""What the queue needs of a connection, and what every connection shares."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final, Literal

from wan_host.errors import PermanentError, QueueUnavailable, SettingsError, WanHostError
from wan_host.queue.scripts import Script

__all__ = ["Backend", "NoScript", "Reply", "Sleep", "Transport", "server_error"]

Backend = Literal["embedded", "redis", "upstash"]
Reply = Any
"""Text, integers, None and lists of these: what a script can answer."""
Sleep = Callable[[float], Awaitable[None]]

_FORGOTTEN_OFTEN: Final = 3
_MAY_PASS: Final = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
)
_CREDENTIALS: Final = ("NOAUTH", "NOPERM", "WRONGPASS")

_INNER_CODE: Final = re.compile(r"Error running script .*: -([A-Z]+) ")


class NoScript(Exception):
    """The server does not know the script (any more)."""


def server_error(message: str, *, where: str, otherwise: type[WanHostError] = PermanentError) -> Exception:
    """Return the exception that an error answer of the server means; ``where`` names the server without credentials."""
    inner = _INNER_CODE.search(message)  # Redis 6 wraps what a command in a script was refused with
    code = inner.group(1) if inner else message.removeprefix("ERR ").split(" ", 1)[0].upper()
    if code == "NOSCRIPT":
        return NoScript(message)
    if code in _MAY_PASS:
        return QueueUnavailable(f"the queue server {where} cannot work now: {message}")
    if code in _CREDENTIALS:
        return SettingsError(f"the queue server {where} refuses the credentials: {message}")
    if code == "WANHOSTSCHEMA":
        return SettingsError(f"the queue server {where}: {message.removeprefix('WANHOSTSCHEMA ')}")
    return otherwise(f"the queue server {where} refuses: {message}")


class Transport(ABC):
    """A connection to the queue server. Every method raises QueueUnavailable when the server cannot be used for now."""

    backend: ClassVar[Backend]
    billed: ClassVar[bool] = False
    """Whether commands cost money, so that idle polls are spaced and not hurried for what is due soon."""

    def __init__(self, where: str) -> None:
        """``where``: the server's address, without credentials, for messages."""
        self.where = where
        self.commands = 0
        """Commands sent so far; over REST one HTTP request each."""
        self._forgotten: Counter[str] = Counter()

    @abstractmethod
    async def execute(self, *command: str) -> Reply:
        """Send one command and return its answer; raises NoScript, QueueUnavailable, SettingsError or PermanentError."""

    @abstractmethod
    async def wait(self, source: str, destination: str, seconds: float, idle: int) -> bool:
        """Wait up to ``seconds``; True as soon as an entry was moved from list ``source`` to list ``destination``.

        ``idle``: how many polls in a row had found nothing. A connection without blocking reads waits longer the higher it is.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connection."""

    def abandon(self) -> None:  # noqa: B027 - only the embedded server outlives its process
        """Leave without waiting for anything: the process is about to end."""

    def nudge(self) -> None:  # noqa: B027 - a connection with blocking reads learns it from the server
        """End a running `wait`: this process has pushed an entry itself."""

    async def recover(self) -> None:  # noqa: B027 - only the embedded server can be mended from here
        """Do what can be done here about a server that does not answer; called before a command is repeated."""

    async def evaluate(self, script: Script, key: str, args: Sequence[str]) -> Reply:
        """Run a script, by its hash if the server keeps it: one command, or two when the server has forgotten it."""
        if self._forgotten[script.sha] < _FORGOTTEN_OFTEN:
            try:
                return await self.execute("EVALSHA", script.sha, "1", key, *args)
            except NoScript:
                self._forgotten[script.sha] += 1
        return await self.execute("EVAL", script.text, "1", key, *args)
