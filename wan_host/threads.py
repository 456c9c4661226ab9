"""Blocking work of strangers, in threads that hold nothing up when they hang: neither other work nor the end of the process.

The threads of ``asyncio.to_thread`` are few, shared, and waited for when the process ends; one plugin that never returns would
take them from everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
Work = Callable[[Callable[[], None]], None]
"""What a thread does; it calls its argument when the thread can take more."""


class Crowded(Exception):
    """So much work of this name has not ended yet that no more is started."""


class StrangerThreads:
    """Runs each piece of work in a daemon thread of its own, at most ``limit`` of one name at a time.

    Threads that have ended their work take the next one: to start a thread costs the loop milliseconds on a busy machine.
    """

    def __init__(self, limit: int) -> None:
        """``limit`` counts the threads that were given up, too: they still hang."""
        self._limit = limit
        self._running: Counter[str] = Counter()
        self._idle: deque[SimpleQueue[Work]] = deque()

    async def run(self, name: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises. Raises Crowded.

        A caller that stops waiting leaves the thread to itself; what becomes of it then is dropped.
        """
        if self._running[name] >= self._limit:
            raise Crowded(f"{name} has {self._limit} calls that have not ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._running[name] -= 1
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # a T where there is no error
            else:
                future.set_exception(error)

        def target(free: Callable[[], None]) -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = context.run(work)
            except StopIteration as problem:  # no future takes one
                error = RuntimeError(f"{name} raised StopIteration")
                error.__cause__ = problem
            except SystemExit as problem:  # it would end the event loop
                error = RuntimeError(f"{name} raised SystemExit")
                error.__cause__ = problem
            except BaseException as problem:  # noqa: BLE001  # it belongs to whoever waits
                error = problem
            free()  # first, so that whoever hears of the end finds the thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, error)

        self._running[name] += 1
        self._hand_over(target)
        return await future

    def _hand_over(self, work: Work) -> None:
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="wan-host stranger", daemon=True).start()
        inbox.put(work)

    def _serve(self, inbox: SimpleQueue[Work]) -> None:
        while True:
            inbox.get()(lambda: self._idle.append(inbox))
