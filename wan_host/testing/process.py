"""A worker in a process of its own, as users run it: started, watched, signalled and killed by tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_LISTENING = re.compile(rb'"event": "listening".*?"port": (\d+)|"port": (\d+).*?"event": "listening"')


class WorkerProcess:
    """``wan-host run`` with its own environment; use it with ``with``. ``log`` is the file that it writes to."""

    def __init__(self, *, data_dir: Path, environment: dict[str, str] | None = None, arguments: tuple[str, ...] = ()) -> None:
        """``environment`` is added to this process's own; ``data_dir`` may be shared by several workers."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self.log = data_dir / f"worker-{time.monotonic_ns()}.log"
        self._environment = {**os.environ, "WAN_HOST_DATA_DIR": str(data_dir), "WAN_HOST_PORT": "0"}
        self._environment |= {"WAN_HOST_LOG_FORMAT": "json", "WAN_HOST_MIN_FREE_BYTES": "0", **(environment or {})}
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The host's process id."""
        return self._started.pid

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process

    def start(self) -> Self:
        """Start the worker and wait until it is ready. Raises RuntimeError with the end of its log where it is not."""
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [sys.executable, "-m", "wan_host", "run", *self._arguments],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
        return self

    def wait_ready(self, seconds: float = 60) -> Self:
        """Wait until ``/ready`` answers 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._started.poll() is not None:
                raise RuntimeError(f"the worker ended with {self._started.returncode}: {self.log_tail()}")
            try:
                if self.get("/ready")[0] == 200:  # noqa: PLR2004  # OK
                    return self
            except (OSError, LookupError):
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the worker was not ready within {seconds} s: {self.log_tail()}")

    def ended(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._started.poll()

    def port(self) -> int:
        """Return the port it listens on. Raises LookupError before it does."""
        match = _LISTENING.search(self.log.read_bytes())
        if match is None:
            raise LookupError("not listening yet")
        return int(match[1] or match[2])

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON body of a GET (text where it is no JSON)."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=5) as answer:  # loopback
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    def lane_pids(self) -> list[int]:
        """Return the process ids of its lanes."""
        import psutil

        children = psutil.Process(self.pid).children(recursive=True)
        return [child.pid for child in children if any("wan_host.lanes.lane" in part for part in child.cmdline())]

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of its log that are JSON."""
        lines = self.log.read_bytes().splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def log_tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def signal(self, number: int) -> None:
        """Send a signal to the host process alone."""
        self._started.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end and return the exit status."""
        return self._started.wait(seconds)

    def __enter__(self) -> Self:
        """Start and wait until it is ready."""
        return self.start().wait_ready()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it in good order, by force where that takes too long."""
        process = self._started
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
