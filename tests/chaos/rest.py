"""A way to the queue server as Upstash gives it: REST, with the faults of a gateway, for some of the workers."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque

from tests.upstash_bridge import Fault, upstash_bridge

TOKEN = "chaos-token"
_START_SECONDS = 20.0


class DrawnFaults(deque[Fault]):
    """As many faults as ``rate`` says, before the command and after it, drawn one request at a time."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__()
        self._dice, self._rate = random.Random(f"{seed}/rest"), rate
        self.made: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return self._dice.random() < self._rate

    def popleft(self) -> Fault:
        """Draw one. None hangs: the client's patience of 20 s would be most of the run."""
        kind = self._dice.choice(["reset", "html", "error", "json"])
        after = self._dice.random() < 0.5
        self.made[f"rest {kind} {'after' if after else 'before'}"] += 1
        message = "ERR internal error" if kind == "error" else {"message": "no Upstash JSON"}
        return Fault(kind=kind, after=after, status=self._dice.choice([500, 502, 503]), message=message)


class RestFront:
    """The bridge of Upstash's protocol in front of a server, in a thread of its own."""

    def __init__(self, redis_url: str, *, seed: int, rate: float) -> None:
        self.url = ""
        self.faults = DrawnFaults(seed, rate)
        self.requests = 0
        self._redis_url = redis_url
        self._started, self._ended = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> None:
        """Serve; ``url`` is known then."""
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise RuntimeError("the REST front did not start")

    def stop(self) -> None:
        """Stop serving."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(_START_SECONDS)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with upstash_bridge(self._redis_url, token=TOKEN) as bridge:
            bridge.faults = self.faults
            self.url = bridge.url
            self._started.set()
            await self._ended.wait()
            self.requests = len(bridge.requests)
