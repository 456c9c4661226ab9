"""The processes that are killed: workers and their lanes, the queue server, and what starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.plan import Kill, Options
from tests.chaos.rest import TOKEN, RestFront
from wan_host.queue.embedded import server_binary
from wan_host.testing import instant, remote_store
from wan_host.testing.process import WorkerProcess

_START_SECONDS = 30.0


class TcpServer:
    """A Valkey on a TCP port that comes back, when it was killed, with its append-only file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It writes before it answers, so SIGKILL loses nothing that was answered."""
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes", "appendfsync": "no"}
        settings |= {"save": "", "logfile": self.folder / "server.log", "maxmemory-policy": "noeviction"}
        arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([str(server_binary()), *arguments], stdin=subprocess.DEVNULL)

    def keep(self) -> None:
        """Start it again if it is gone."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def stop(self) -> None:
        """Stop it in good order."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class Fleet:
    """Workers under supervision: whatever was killed is started again by ``keep``."""

    def __init__(self, folder: Path, options: Options, environment: dict[str, str]) -> None:
        self.folder, self.options = folder, options
        self.server = TcpServer(folder / "server") if options.topology != "embedded" else None
        self.rest: RestFront | None = None
        if self.server is not None and options.topology == "rest":
            self.rest = RestFront(self.server.url, seed=options.seed, rate=options.fault_rate)
            self.rest.start()
        for name in ("plugins", "tmp", "run"):
            (folder / name).mkdir()
        plugins = {"instant": instant.__name__, "store": remote_store.__name__}
        instant.install(folder / "plugins", plugins)
        self.environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "plugins"), os.environ.get("PYTHONPATH", "")])),
            "TMPDIR": str(folder / "tmp"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "WAN_HOST_MODEL": "instant",
            "WAN_HOST_DEVICES": "cpu",
            "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance,supabase",
            "WAN_HOST_PUBLISHER": "store",
            "WAN_HOST_LEASE_SECONDS": "3",
            "WAN_HOST_MAX_ATTEMPTS": str(options.max_attempts),
            "WAN_HOST_CALLBACK_TIMEOUT": "2",
            "WAN_HOST_PUBLISH_TIMEOUT": "2",
            "WAN_HOST_REFERENCE_TIMEOUT": "2",
            "WAN_HOST_STEP_TIMEOUT": "4",
            "WAN_HOST_CANCEL_GRACE": "2",
            "WAN_HOST_CHECKPOINT_EVERY": "2",
            instant.RUNS_VARIABLE: str(self.runs_file),
            **environment,
        }
        self.workers: list[WorkerProcess | None] = [None] * options.workers
        self.logs: list[Path] = []
        self.killed: dict[str, int] = {"worker": 0, "lane": 0, "server": 0}

    @property
    def runs_file(self) -> Path:
        """Where the model notes every run."""
        return self.folder / "runs"

    def data_dirs(self) -> list[Path]:
        """Return the data folders: one for all where the server is embedded, else one for each worker."""
        names = ["data"] if self.server is None else [f"data-{number}" for number in range(self.options.workers)]
        return [self.folder / name for name in names]

    def url(self) -> str | None:
        """Return the queue's address, None while there is none."""
        if self.server is not None:
            return self.server.url
        with contextlib.suppress(OSError):
            return f"unix://{(self.data_dirs()[0] / 'queue' / 'server.socket').read_text()}"
        return None

    def keep(self) -> None:
        """Start whatever does not run."""
        if self.server is not None:
            self.server.keep()
        for number, worker in enumerate(self.workers):
            if worker is None or worker.ended() is not None:
                folders = self.data_dirs()
                environment = {**self.environment, **self._queue_of(number)}
                fresh = WorkerProcess(data_dir=folders[number % len(folders)], environment=environment)
                self.workers[number] = fresh.start()
                self.logs.append(fresh.log)

    def _queue_of(self, number: int) -> dict[str, str]:
        """Return how a worker reaches the queue; nothing where it is embedded."""
        if self.rest is not None and number % 2 == 0:
            return {"UPSTASH_REDIS_REST_URL": self.rest.url, "UPSTASH_REDIS_REST_TOKEN": TOKEN}
        return {"WAN_HOST_QUEUE_URL": self.server.url} if self.server is not None else {}

    async def ready(self) -> None:
        """Wait until every worker is."""
        for worker in self.alive():
            await asyncio.to_thread(worker.wait_ready, _START_SECONDS * self.options.workers)

    def alive(self) -> list[WorkerProcess]:
        """Return the workers that run."""
        return [worker for worker in self.workers if worker is not None and worker.ended() is None]

    def kill(self, kill: Kill) -> bool:
        """Send SIGKILL; False if there is nothing of that kind just now."""
        pid = self._victim(kill)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed[kill.kind] += 1
        return True

    def _victim(self, kill: Kill) -> int | None:
        if kill.kind == "server":
            return self._server_pid()
        workers = self.alive()
        if not workers:
            return None
        chosen = workers[kill.which % len(workers)]
        if kill.kind == "worker":
            return chosen.pid
        with contextlib.suppress(psutil.Error):
            return next(iter(chosen.lane_pids()), None)
        return None

    def _server_pid(self) -> int | None:
        if self.server is not None:
            process = self.server.process
            return process.pid if process is not None and process.poll() is None else None
        url = self.url()
        if url is None:
            return None
        with contextlib.suppress(RedisError, OSError), Redis.from_url(url, socket_timeout=2) as client:
            return int(client.info("server")["process_id"])
        return None

    def stop(self) -> list[str]:
        """Stop every worker with SIGTERM, then the server; return what did not end as it should."""
        workers, wrong = self.alive(), []
        for worker in workers:  # one that has just been started does not listen to signals yet
            worker.wait_ready(_START_SECONDS * self.options.workers)
        for worker in workers:
            worker.signal(signal.SIGTERM)
        for worker in workers:
            try:
                status = worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.signal(signal.SIGKILL)
                worker.wait()
                status = None
            if status != 0:
                wrong.append(f"worker {worker.pid} ended with {status} after SIGTERM: {worker.log_tail()[-500:]}")
        if self.rest is not None:
            self.rest.stop()
            if not self.rest.requests:
                wrong.append("no worker has used REST")
        if self.server is not None:
            self.server.stop()
        return wrong

    def kill_all(self) -> None:
        """Leave nothing behind, whatever happened."""
        for process in left_processes(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.rest is not None:
            self.rest.stop()
        if self.server is not None and self.server.process is not None:
            self.server.process.kill()
            self.server.process.wait()


def left_processes(folder: Path) -> list[psutil.Process]:
    """Return the processes of a run: its folder stands in the environment that all of them inherit.

    A Valkey writes its title over its environment, so that it is known by the folder that it works in.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            noted = process.environ().get(instant.RUNS_VARIABLE, "")
            if noted.startswith(f"{folder}/") or Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found
