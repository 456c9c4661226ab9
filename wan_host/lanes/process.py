"""One child process as the host holds it: its socket, its output, and its end. All of it on the event loop's thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from wan_host.lanes import channel
from wan_host.lanes.messages import ToLane

log = structlog.get_logger("wan_host.lanes")

TAIL_LINES: Final = 40
_LINE_CHARACTERS = 2000
_PIPE_BYTES = 64 * 1024
_LAST_READS = 100
_EXIT_SECONDS = 1.0
HOST_ONLY: Final = frozenset(
    {
        "JOB_CALLBACK_SECRET",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "RUNPOD_API_KEY",
        "SUPABASE_SERVICE_KEY",
        "SUPABASE_SERVICE_ROLE_KEY",
        "UPSTASH_REDIS_REST_TOKEN",
        "UPSTASH_REDIS_REST_URL",
        "WAN_HOST_CALLBACK_URL",
        "WAN_HOST_QUEUE_URL",
        "WAN_WORKER_API_KEY",
    }
)
"""Variables with secrets that no lane needs. All others are passed on: libraries and plugins read more than we can know."""


class LaneProcess:
    """A child and everything that belongs to it; nothing of it is left once ``exited`` is done."""

    def __init__(self, name: str, environment: Mapping[str, str], on_message: Callable[[object], None]) -> None:
        """Start the child; raises OSError where the system refuses. ``on_message`` gets what it says, on the loop's thread."""
        self._name = name
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._decoder = channel.Decoder()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._sent: list[int] = []
        self._line = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # started from the loop's thread: PR_SET_PDEATHSIG fires when the thread ends that started the child
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-P", "-m", "wan_host.lanes.lane", str(theirs.fileno()), str(os.getpid())],
                env=_environment(environment),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a ctrl-C at the terminal is for the host alone, and a kill takes grandchildren along
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        assert self._process.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)  # the signature of os
        self._socket.setblocking(False)  # the signature of socket
        self._loop.add_reader(self._socket.fileno(), self._read_socket)
        self._loop.add_reader(self._output.fileno(), self._read_output)
        threading.Thread(target=self._wait, name=f"lane-{name}-wait", daemon=True).start()

    def send(self, message: ToLane, folder: str) -> None:
        """Queue a message; a child that is gone gets nothing, which its exit tells. Raises what pickle raises."""
        if self.exited.done():
            return
        frame, descriptor = channel.encode(message, folder)
        self._unsent.append((memoryview(frame), descriptor))
        self._write_socket()

    def kill(self) -> None:
        """End the child and all that it started, at once; ``exited`` follows."""
        if not self.exited.done():
            self._signal_group(signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Make the child print where each of its threads is; the lines arrive in ``tail``."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def describe_exit(self) -> str:
        """Say how the child ended, in words, and its last lines."""
        status = self.exited.result()
        if status == -signal.SIGKILL:
            how = "was killed by SIGKILL (out of memory?)"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with exit status {status}"
        return how + self.last_lines()

    def last_lines(self) -> str:
        """Return the last lines of output as the end of a message; empty where there were none."""
        return "\n".join(("; its last lines:", *self.tail)) if self.tail else "; it printed nothing"

    def _signal_group(self, number: int) -> None:
        # PermissionError: macOS answers so for a group whose members have all ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _wait(self) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._ended, status)

    def _ended(self, status: int) -> None:
        self._signal_group(signal.SIGKILL)
        # its last words may still lie in the pipes; bounded, because a stray grandchild may go on writing
        for read in (self._read_socket, self._read_output):
            for _ in range(_LAST_READS):
                if not read():
                    break
        self._take_line()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._loop.remove_reader(self._output.fileno())
        self._socket.close()
        self._output.close()
        self._decoder.close()
        self._close_sent()
        for _, descriptor in self._unsent:
            if descriptor is not None:
                os.close(descriptor)
        self._unsent.clear()
        self.exited.set_result(status)

    def _read_socket(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data, descriptors = channel.receive(self._socket)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        if not data:  # closed: the exit follows, or is made to, since a child that cannot be heard is of no use
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(_EXIT_SECONDS, self.kill)
            return False
        self._close_sent()  # it was idle before, so this is its answer
        try:
            for message in self._decoder.feed(data, descriptors):
                self._on_message(message)
        except Exception:
            log.exception("lane sent what cannot be read", lane=self._name, pid=self.pid)
            self._loop.remove_reader(self._socket.fileno())
            self.kill()
            return False
        return True

    def _write_socket(self) -> None:
        while self._unsent:
            frame, descriptor = self._unsent[0]
            try:
                sent = channel.send_some(self._socket, frame, descriptor)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._write_socket)
                return
            except OSError:
                break  # the child is gone; its exit clears what is unsent
            if descriptor is not None and channel.KEEP_SENT:
                self._sent.append(descriptor)
            elif descriptor is not None:
                os.close(descriptor)
            if sent < len(frame):
                self._unsent[0] = (frame[sent:], None)
            else:
                self._unsent.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _close_sent(self) -> None:
        while self._sent:
            os.close(self._sent.pop())

    def _read_output(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data = os.read(self._output.fileno(), _PIPE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._output.fileno())
            return False
        *lines, self._line = (self._line + data).splitlines(keepends=True)
        if self._line.endswith((b"\n", b"\r")) or len(self._line) > _LINE_CHARACTERS:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            self._emit(line)
        return True

    def _take_line(self) -> None:
        line, self._line = self._line, b""
        self._emit(line)

    def _emit(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:_LINE_CHARACTERS]
        if not text:
            return
        if line.endswith(b"\r"):  # a progress bar redraws itself: of interest to nobody who reads a log
            log.debug("lane output", lane=self._name, pid=self.pid, line=text)
            return
        self.tail.append(text)
        log.info("lane output", lane=self._name, pid=self.pid, line=text)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # the child finds the same modules as the host, and nothing in the working folder (-P) that the host would not find
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    passed = {name: value for name, value in os.environ.items() if name.upper() not in HOST_ONLY}
    return {**passed, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}
