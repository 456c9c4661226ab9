"""What the HTTP side promises: quick answers of /health while a video is made, and event streams that cost a job nothing.

Runs a worker with tiny-wan (or, with ``--model instant``, a model that only waits) on this machine's cores. On a kept connection
it is asked for /health and /metrics while it is idle, then for /health, 20 times a second, while it makes videos one after the
other; then the same with 500 event streams that are opened and never read. Pin the whole to two cores with ``taskset -c 0,1``,
on an idle machine.

    python benchmarks/http_server.py [--jobs 5] [--streams 500] [--model tiny-wan]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess

ENDED = frozenset({"published", "completed", "report_refused", "failed", "cancelled"})
IDLE_ANSWERS = 200
CONFIGS = {"tiny-wan": {}, "instant": {"width": 480, "height": 832, "frames": 81, "num_inference_steps": 40}}


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        """Connect at the first request."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON of an answer. Raises RuntimeError for an error."""
        return json.loads(self.read(method, path, body))

    def read(self, method: str, path: str, body: object = None) -> bytes:
        """Return what an answer holds. Raises RuntimeError for an error."""
        self._connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return text


def ask_often(client: Client, path: str, count: int) -> list[float]:
    """Ask for a page 20 times a second; return the seconds of every answer."""
    times = []
    for _ in range(count):
        time.sleep(0.05)
        asked = time.perf_counter()
        client.read("GET", path)
        times.append(time.perf_counter() - asked)
    return times


def watch_health(port: int, stop: threading.Event, times: list[float]) -> None:
    """Ask 20 times a second, and note how long each answer took."""
    client = Client(port)
    while not stop.wait(0.05):
        asked = time.perf_counter()
        client.ask("GET", "/health")
        times.append(time.perf_counter() - asked)


def make(client: Client, name: str, model: str, streams: int) -> dict[str, float]:
    """Make one video, with so many unread streams of its events; return the seconds of its stages, and the whole."""
    prompt = "pace:0.1 preview" if model == "instant" else "a red circle moves to the right on a blue background"
    config = {"model": model, "seed": 1, **CONFIGS[model]}
    client.ask("POST", "/jobs", {"id": name, "type": "video_fast", "prompt": prompt, "user_id": "bench", "config": config})
    request = f"GET /jobs/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    readers = []
    for _ in range(streams):
        reader = socket.create_connection(("127.0.0.1", client._connection.port))  # noqa: SLF001  # the benchmark's own client
        reader.sendall(request)
        readers.append(reader)
    while (job := client.ask("GET", f"/jobs/{name}"))["status"] not in ENDED:
        time.sleep(0.2)
    for reader in readers:
        reader.close()
    if not job["assets"]:
        raise RuntimeError(f"job {name} ended as {job['status']}: {job['error']}")
    stages: dict[str, float] = job["metadata"]["stage_seconds"]
    return {**stages, "whole": job["metadata"]["processing_time"]}


def shown(times: list[float]) -> str:
    """Return median and 99th percentile in milliseconds."""
    quantiles = statistics.quantiles(times, n=100)
    return f"median {statistics.median(times) * 1000:.2f} ms, p99 {quantiles[98] * 1000:.2f} ms, of {len(times)} answers"


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="tiny-wan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wan-host-bench-") as folder:
        instant.install(Path(folder) / "plugins")
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [f"{folder}/plugins", os.environ.get("PYTHONPATH", "")])),
            "WAN_HOST_DEVICES": "cpu",
            "WAN_HOST_DISABLED_PLUGINS": "qwen_enhance",
        }
        with WorkerProcess(data_dir=Path(folder) / "data", environment=environment) as worker:
            measure(worker, options)


def measure(worker: WorkerProcess, options: argparse.Namespace) -> None:
    """Make the videos, without streams and with them in turn, so that a change of the machine's pace meets both."""
    client = Client(worker.port())
    for path in ("/health", "/metrics"):
        print(f"idle: {path} {shown(ask_often(client, path, IDLE_ANSWERS))}")
    make(client, "warm-up", options.model, 0)
    found: dict[int, list[dict[str, float]]] = {0: [], options.streams: []}
    health: dict[int, list[float]] = {0: [], options.streams: []}
    host = psutil.Process(worker.pid)
    processor: dict[int, float] = {0: 0.0, options.streams: 0.0}
    for number in range(options.jobs):
        for streams, runs in found.items():
            stop = threading.Event()
            watcher = threading.Thread(target=watch_health, args=(worker.port(), stop, health[streams]))
            watcher.start()
            before = host.cpu_times()
            runs.append(make(client, f"job-{number}-{streams}", options.model, streams))
            after = host.cpu_times()
            processor[streams] += after.user + after.system - before.user - before.system
            stop.set()
            watcher.join()
    for streams, runs in found.items():
        median = {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in ("denoise", "encode", "whole")}
        print(f"{streams} unread streams: /health {shown(health[streams])}")
        print(
            f"  a video takes {median['whole']:.2f} s (denoise {median['denoise']:.2f} s, encode {median['encode']:.2f} s, "
            f"medians of {len(runs)}); the host's own processor time is {processor[streams] / len(runs):.2f} s a video"
        )


if __name__ == "__main__":
    main()
