"""One run of the suite: start, push, kill, drain, stop, and then the books."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos import soak
from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Balance, Books, reconcile
from tests.chaos.leftovers import leftovers, shared_memory
from tests.chaos.plan import Options, Plan, as_entry, make_plan
from wan_host.errors import WanHostError
from wan_host.queue import JobQueue, open_queue
from wan_host.testing import remote_store
from wan_host.testing.outside import Faults, Outside

T = TypeVar("T")
QUEUE = "wan_queue"
_TICK = 0.1
_TRIES = 20
"""Ticks in which something of the kind that is to be killed may appear."""
_SAMPLE_SECONDS = 1.0


@dataclass(slots=True)
class Result:
    """What a run found."""

    balance: Balance
    killed: dict[str, int]
    faults: Counter[str]
    seconds: float
    restarts: int
    samples: list[soak.Sample] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Everything that does not add up; empty after a good run."""
        return self.balance.wrong

    def lines(self) -> list[str]:
        """Say it to a person."""
        ends = ", ".join(f"{count} {name}" for name, count in sorted(self.balance.ends.items()))
        killed = ", ".join(f"{count} of {name}s" for name, count in self.killed.items())
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        told = [f"ends: {ends}", f"SIGKILL: {killed}; {self.restarts} workers started; {self.seconds:.0f} s", f"faults: {faults}"]
        return told + [f"WRONG {line}" for line in self.wrong]


class Chaos:
    """The players of a run."""

    def __init__(self, plan: Plan, fleet: Fleet, outside: Outside) -> None:
        self.plan, self.fleet, self.outside = plan, fleet, outside
        self.pushes: Counter[str] = Counter()
        self.poison: Counter[str] = Counter()
        self.samples: list[soak.Sample] = []
        self.wrong: list[str] = []
        self._started = time.monotonic()
        self._calm = asyncio.Event()

    async def run(self) -> Books:
        """Push everything while things are killed, wait until the queue is empty, and return the books."""
        options = self.plan.options
        self.fleet.keep()
        await self.fleet.ready()
        self._started = time.monotonic()
        tending = [asyncio.create_task(task) for task in (self._keep(), self._kill(), self._sample())]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._produce())
                group.create_task(self._cancel())
            await self._drained(kills=True, seconds=options.drain_seconds / 2)
            self._calm.set()
            await self._drained(kills=False, seconds=options.drain_seconds)
            return await self._patiently(self._read_books)
        finally:
            for task in tending:
                task.cancel()
            results = await asyncio.gather(*tending, return_exceptions=True)
            self.wrong += [repr(item) for item in results if isinstance(item, Exception)]

    def _now(self) -> float:
        return time.monotonic() - self._started

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self._now()))

    async def _keep(self) -> None:
        while True:
            self.fleet.keep()
            await asyncio.sleep(_TICK)

    async def _kill(self) -> None:
        for kill in self.plan.kills():
            await self._until(kill.at)
            for _ in range(_TRIES):
                if self._calm.is_set():
                    return
                if self.fleet.kill(kill):
                    break
                await asyncio.sleep(_TICK)

    async def _sample(self) -> None:
        while True:
            self.samples += await asyncio.to_thread(soak.sample, self.fleet, self._started)
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _produce(self) -> None:
        """Push as producers do that only know Redis; an answer that is lost is a reason to push again."""
        entries = [(at, job.id, as_entry(job)) for job in self.plan.jobs for at in job.push_at]
        entries += [(at, "", text) for text, at in self.plan.poison.items()]
        for at, job_id, text in sorted(entries):
            await self._until(at)
            while True:
                (self.pushes if job_id else self.poison)[job_id or text] += 1
                try:
                    await self._push(text)
                    break
                except (RedisError, OSError, LookupError):
                    await asyncio.sleep(_TICK)

    async def _push(self, text: str) -> None:
        url = self.fleet.url()
        if url is None:
            raise LookupError
        async with Redis.from_url(url, socket_timeout=2) as client:
            await client.rpush(QUEUE, text)  # type: ignore[misc]  # redis-py has no types here

    async def _cancel(self) -> None:
        for job in sorted((job for job in self.plan.jobs if job.cancel_at is not None), key=lambda job: job.cancel_at or 0):
            await self._until(job.cancel_at or 0)
            await self._patiently(lambda queue, job_id=job.id: queue.cancel(job_id))

    @asynccontextmanager
    async def _queue(self) -> AsyncIterator[JobQueue]:
        url = self.fleet.url()
        if url is None:
            raise LookupError("there is no queue server")
        queue = await open_queue(url, data_dir=self.fleet.folder, worker_id="chaos", lease_seconds=3)
        try:
            yield queue
        finally:
            await queue.aclose()

    async def _patiently(self, ask: Callable[[JobQueue], Awaitable[T]], seconds: float = 60) -> T:
        """Ask until the queue server answers."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                async with self._queue() as queue:
                    return await ask(queue)
            except (WanHostError, LookupError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_TICK)

    async def _drained(self, *, kills: bool, seconds: float) -> None:
        """Wait until nothing waits, runs, or is to be reported."""
        deadline = time.monotonic() + seconds
        depth = await self._patiently(lambda queue: queue.depth())
        while depth.waiting + depth.leased + (0 if kills else depth.reports):  # a dead worker's reports are due after a minute
            if time.monotonic() > deadline:
                if not kills:
                    self.wrong.append(f"not drained within {seconds:.0f} s: {depth}")
                return
            await asyncio.sleep(0.5)
            depth = await self._patiently(lambda queue: queue.depth())

    async def _read_books(self, queue: JobQueue) -> Books:
        most = 2 * len(self.plan.jobs) + 100
        runs = [line.split() for line in self.fleet.runs_file.read_text().splitlines()]
        return Books(
            options=self.plan.options,
            jobs=self.plan.jobs,
            pushes=self.pushes,
            poison=self.poison,
            states=await queue.jobs(limit=most),
            letters=await queue.dead_letters(limit=most),
            arrivals=self.outside.arrivals,
            objects=self.outside.objects,
            puts=self.outside.puts,
            runs=[(job_id, int(attempt)) for job_id, attempt in runs],
        )


def run_chaos(options: Options, folder: Path) -> Result:
    """Run the suite in a folder of its own, which must be new and have a short path."""
    shared_before = shared_memory()
    started = time.monotonic()
    with Outside(Faults(seed=options.seed, rate=options.fault_rate)) as outside:
        plan = make_plan(options, f"{outside.url}/references")
        outside.references.update({f"{job.id}.png": job.reference for job in plan.jobs if job.reference is not None})
        environment = {
            "WAN_HOST_REFERENCE_HOSTS": outside.address,
            "WAN_HOST_CALLBACK_URL": f"{outside.url}/reports",
            remote_store.URL_VARIABLE: f"{outside.url}/store",
        }
        fleet = Fleet(folder, options, environment)
        chaos = Chaos(plan, fleet, outside)
        try:
            books = asyncio.run(chaos.run())
            wrong = fleet.stop() + leftovers(fleet, shared_before)
        finally:
            fleet.kill_all()
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        balance = reconcile(books, Path(workdir))
    balance.wrong += [*chaos.wrong, *wrong, *_internal_errors(fleet)]
    return Result(
        balance=balance,
        killed=fleet.killed,
        faults=outside.faults.made + (fleet.rest.faults.made if fleet.rest is not None else Counter()),
        seconds=time.monotonic() - started,
        restarts=len(fleet.logs),
        samples=chaos.samples,
    )


def _internal_errors(fleet: Fleet) -> list[str]:
    """Return what the workers' logs hold that only a bug can cause: exceptions that nobody had expected."""
    found = []
    for log in fleet.logs:
        for line in log.read_text(errors="replace").splitlines():
            event = json.loads(line) if line.startswith("{") and line.endswith("}") else {"event": line}
            unexpected = "Traceback" in event.get("event", "") or "exception" in event or event.get("logger") == "asyncio"
            if unexpected and "lane" not in event:
                found.append(f"{log.name}: {line[:2000]}")
    return found
