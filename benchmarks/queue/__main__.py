"""The queue in figures: jobs a second against arq, rq and saq; from push to start; claims beside a million waiting entries.

    python benchmarks/queue [--jobs 1000] [--rounds 3] [--waiting 1000000] [--only throughput,start,claims,fair]

Every contender is one worker process on the same Valkey over TCP, publishes the same file with the same fsyncs and posts the same
two reports to the same receiver; the jobs wait already. Counted is the time from the first completed report to the last, and the
CPU time of the worker and its children. What is not the same, and costs wan-host alone: a spool on disk (fsync) before anything
is published, fencing tokens checked before and after, job states that outlive the job, reports in an outbox until they were
accepted. What it does not cost: rq starts a process for each job (``rq, no fork`` does not, and then has no protection from a
job that crashes). The other contenders get environments of their own from the package registry, because arq wants an older redis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from wan_host.queue import JobQueue, open_queue  # noqa: E402  # the host may not be installed
from wan_host.queue.embedded import server_binary  # noqa: E402
from wan_host.testing import instant  # noqa: E402
from wan_host.testing.process import WorkerProcess  # noqa: E402
from wan_host.testing.receiver import Received, Receiver  # noqa: E402

PATIENCE = 180.0
FAIR_CLAIMS = 100


@dataclass(frozen=True, slots=True)
class Contender:
    """A queue: the script that pushes and works, the words for working, and what its environment needs."""

    name: str
    script: str
    words: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


CONTENDERS = (
    Contender("wan-host", "with_wan_host.py"),
    Contender("wan-host, with lane and encoder", "with_wan_host.py", ("whole",)),
    Contender("arq", "with_arq.py", (), ("arq==0.28.0", "httpx")),
    Contender("rq", "with_rq.py", (), ("rq==3.0.0", "httpx")),
    Contender("rq, no fork", "with_rq.py", ("nofork",), ("rq==3.0.0", "httpx")),
    Contender("saq", "with_saq.py", (), ("saq[redis]==0.26.4", "httpx")),
)
GOALS = {"arq": 1.0, "rq": 1.0, "saq": 2.0}
"""wan-host's time may be so many times theirs."""


def python_of(contender: Contender, environments: Path) -> str:
    """Return the interpreter of a contender's environment, which is made where it is missing."""
    if not contender.packages:
        return sys.executable
    folder = environments / contender.packages[0].split("=")[0].split("[")[0]
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making an environment with {', '.join(contender.packages)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *contender.packages], check=True
        )
        (folder / "complete").touch()
    return str(python)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """Run a server over TCP, with an append-only file that is synchronised every second."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    options += ["--appendfsync", "everysec", "--logfile", str(folder / "log")]
    process = subprocess.Popen([str(server_binary()), *options])
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with Redis.from_url(url) as client:
            for _ in range(200):
                try:
                    client.ping()
                    break
                except OSError:
                    time.sleep(0.05)
                except Exception:  # noqa: BLE001  # loading, or not listening yet
                    time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def worker_environment(folder: Path, url: str, receiver: Receiver) -> dict[str, str]:
    """Return the settings of a wan-host worker."""
    plugins = folder / "plugins"
    if not plugins.exists():
        plugins.mkdir()
        instant.install(plugins)
    return {
        "PYTHONPATH": os.pathsep.join([str(plugins), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "WAN_HOST_QUEUE_URL": url,
        "WAN_HOST_CALLBACK_URL": receiver.url,
        "WAN_HOST_MODEL": "instant",
        "WAN_HOST_DEVICES": "cpu",
        "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,thumbnail,supabase,qwen_enhance",
        "WAN_HOST_PORT": "0",
        "WAN_HOST_LOG_FORMAT": "json",
        "WAN_HOST_MIN_FREE_BYTES": "0",
        "WAN_HOST_BUCKET": "bench",
        "WAN_HOST_DATA_DIR": str(folder / "data"),
    }


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process with its children, the dead ones included."""
    times = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    return sum(item.user + item.system + item.children_user + item.children_system for item in times)


def throughput(contender: Contender, python: str, jobs: int) -> tuple[float, float]:
    """Return the jobs a second of one contender, and the CPU milliseconds a job of its worker."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Receiver() as receiver, valkey(Path(name) / "server") as url:
        folder = Path(name)
        times: dict[str, float] = {}  # a job may be done twice by some
        cpu: list[float] = []

        def note(request: Received) -> int:
            if request.report["status"] == "completed":
                if len(times) in {0, jobs - 1}:
                    cpu.append(cpu_seconds(psutil.Process(process.pid)))
                times.setdefault(request.report["job_id"], time.perf_counter())
            return 200

        receiver.answer = note
        environment = {**os.environ, **worker_environment(folder, url, receiver)}
        environment |= {"BENCH_REDIS_URL": url, "BENCH_RECEIVER_URL": receiver.url, "BENCH_FOLDER": name, "BENCH_JOBS": str(jobs)}
        script = str(HERE / contender.script)
        if contender.packages:
            del environment["PYTHONPATH"]
        subprocess.run([python, script, "push"], env=environment, check=True)
        with (folder / "worker.log").open("wb") as log:
            process = subprocess.Popen([python, script, "work", *contender.words], env=environment, stdout=log, stderr=log)
            deadline = time.monotonic() + PATIENCE
            while len(times) < jobs and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if len(times) != jobs or len(list(folder.rglob("0.png"))) < jobs:
            raise RuntimeError(f"{contender.name}: {len(times)} of {jobs} jobs: {(folder / 'worker.log').read_text()[-2000:]}")
        return (jobs - 1) / (max(times.values()) - min(times.values())), (max(cpu) - min(cpu)) / (jobs - 1) * 1000


def compare(jobs: int, rounds: int, environments: Path, names: str) -> None:
    """Let the contenders work in turn, several rounds, and print the medians and their ratios."""
    chosen = [contender for contender in CONTENDERS if contender.name.startswith(tuple(names.split(",")))]
    pythons = {contender: python_of(contender, environments) for contender in chosen}
    found: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in chosen}
    for number in range(rounds):
        for contender in chosen:
            rate, cpu = throughput(contender, pythons[contender], jobs)
            found[contender.name].append((rate, cpu))
            print(f"  round {number + 1}: {contender.name}: {rate:.0f} jobs/s, {cpu:.2f} ms CPU a job", flush=True)
    ours = statistics.median(rate for rate, _ in found["wan-host"])
    print(f"\n{'one worker, ' + str(jobs) + ' jobs':34} {'jobs/s':>8} {'CPU ms/job':>11} {'time of wan-host / theirs':>26}")
    for name, results in found.items():
        rate, cpu = (statistics.median(result[index] for result in results) for index in (0, 1))
        goal = f" (goal {GOALS[name]:g})" if name in GOALS else ""
        print(f"{name:34} {rate:8.0f} {cpu:11.2f} {rate / ours:26.2f}{goal}")


def push_to_start(samples: int) -> None:
    """Print the time from RPUSH over TCP to the arrival of the report that work has started, on an idle worker with its lane."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Receiver() as receiver, valkey(Path(name) / "server") as url:
        folder = Path(name)
        environment = worker_environment(folder, url, receiver)
        seconds = []
        with WorkerProcess(data_dir=folder / "data", environment=environment), Redis.from_url(url) as client:
            for number in range(samples + 1):
                job_id = f"job-{number}"
                config = {"width": 64, "height": 64}
                job = {"id": job_id, "type": "image_fast", "prompt": "instant", "user_id": "bench", "config": config}
                pushed = time.perf_counter()
                client.rpush("wan_queue", json.dumps(job))
                receiver.wait_for(job_id, "processing", seconds=30)
                if number:  # the first one connects
                    seconds.append(time.perf_counter() - pushed)
                receiver.wait_for(job_id, "completed", seconds=30)
        middle, late = statistics.median(seconds) * 1000, statistics.quantiles(seconds, n=20)[-1] * 1000
        print(f"from push to the report that work has started: median {middle:.1f} ms (goal 50), 95 % within {late:.1f} ms")


def wait_for_rewrite(url: str) -> None:
    """Wait until the server no longer rewrites its append-only file, which the filling has caused."""
    with Redis.from_url(url) as client:
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.2)


async def fill(url: str, name: str, waiting: int, options: dict[str, Any], *, take_in: bool) -> None:
    """Push ``waiting`` entries into a queue, and take them in."""
    with Redis.from_url(url) as client:
        for start in range(0, waiting, 10_000):
            with client.pipeline(transaction=False) as pipeline:
                for number in range(start, min(start + 10_000, waiting)):
                    pipeline.rpush(name, f'{{"id": "job-{number}", "type": "image_fast", "prompt": "a"}}')
                pipeline.execute()
    if take_in:
        taker = await open_queue(url, name=name, moved_a_poll=2000, **options)
        while (await taker.poll(claims=0)).moved:
            pass
        await taker.aclose()


async def one_claim(queue: JobQueue, number: int) -> float:
    """Return the seconds of a claim; as many wait afterwards."""
    started = time.perf_counter()
    poll = await queue.poll(claims=1)
    seconds = time.perf_counter() - started
    await queue.finish(poll.claims[0], status="published", report=None)
    await queue.push(f'{{"id": "more-{number}", "type": "image_fast", "prompt": "a"}}')
    await queue.poll(claims=0)
    return seconds


async def claim_times(url: str, folder: Path, sizes: dict[str, int], claims: int) -> dict[str, list[float]]:
    """Return the seconds of claims from queues with so many waiting entries each, in turn: whatever disturbs, disturbs all."""
    options = {"data_dir": folder, "worker_id": "bench", "lease_seconds": 600.0}
    for name, waiting in sizes.items():
        await fill(url, name, waiting, options, take_in=name != "pushed")
    await asyncio.to_thread(wait_for_rewrite, url)
    queues = {name: await open_queue(url, name=name, **options) for name in sizes}
    found: dict[str, list[float]] = {name: [] for name in sizes}
    dice = random.Random(1)
    for number in range(claims):
        for name in dice.sample(list(sizes), len(sizes)):  # none is always the one after the slow one
            found[name].append(await one_claim(queues[name], number))
    for queue in queues.values():
        await queue.aclose()
    return found


def claims_beside(waiting: int) -> None:
    """Print what a claim costs beside few and beside many waiting entries."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, valkey(Path(name) / "server") as url:
        sizes = {"few": 10, "many": waiting, "pushed": waiting}
        found = asyncio.run(claim_times(url, Path(name), sizes, claims=300))
    low, high, moving = (statistics.median(found[name]) * 1000 for name in sizes)
    paired = statistics.median(many / few for few, many in zip(found["few"], found["many"], strict=True))
    print(f"one claim: {low:.2f} ms beside 10 waiting entries, {high:.2f} ms beside {waiting:,}")
    print(f"in turn: {high / low:.2f} times by the medians, {paired:.2f} by the median of the pairs (goal 1.5)")
    print(f"one claim while polls still take in a list of {waiting:,}, 64 entries at a time: {moving:.2f} ms")


async def fair_claim_times(url: str, folder: Path, waiting: int, claims: int) -> dict[bool, list[float]]:
    """Return the seconds of claims while entries get their turns, and of claims by their age, beside as many entries."""
    options = {"data_dir": folder, "worker_id": "bench", "lease_seconds": 600.0}
    found: dict[bool, list[float]] = {True: [], False: []}
    for fair, times in found.items():
        name = f"fair-{fair}"
        await fill(url, name, waiting, options, take_in=True)
        queue = await open_queue(url, name=name, fair_users=fair, **options)
        for number in range(claims):
            times.append(await one_claim(queue, number))
        await queue.aclose()
    return found


def claims_in_turn(claims: int) -> None:
    """Print what a claim costs where users take turns, while polls still give the waiting entries theirs."""
    waiting = 512 * claims  # a poll gives 512 of them their turns
    with tempfile.TemporaryDirectory(prefix="bench-") as name, valkey(Path(name) / "server") as url:
        found = asyncio.run(fair_claim_times(url, Path(name), waiting, claims))
    fair, plain = (statistics.median(found[kind]) * 1000 for kind in (True, False))
    print(
        f"one claim while {waiting:,} entries get their turns: {fair:.2f} ms; without turns {plain:.2f} ms, medians of {claims}"
    )


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default="wan-host,arq,rq,saq", help="how their names begin; wan-host must be one of them")
    parser.add_argument("--samples", type=int, default=50, help="jobs for the time from push to start")
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--only", default="throughput,start,claims,fair")
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "wan-host-bench-environments")
    given = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "throughput": lambda: compare(given.jobs, given.rounds, given.environments, given.contenders),
        "start": lambda: push_to_start(given.samples),
        "claims": lambda: claims_beside(given.waiting),
        "fair": lambda: claims_in_turn(FAIR_CLAIMS),
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for part in given.only.split(","):
        parts[part]()


if __name__ == "__main__":
    main()
