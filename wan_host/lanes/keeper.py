"""Keeps one child alive: starts it, notices its end, starts the next, and says so when that does not work."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal

import structlog

from wan_host.errors import LaneCrashed, LaneHung, RetryableError
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import Hello, Ping, Pong, Start, StartFailed, Stop
from wan_host.lanes.process import LaneProcess
from wan_host.lanes.state import EndReason, LaneEnded, LaneEvent, LaneStarted

log = structlog.get_logger("wan_host.lanes")

KeeperStatus = Literal["starting", "up", "restarting", "stopped", "failed"]
_FAULTS: Final = frozenset({"crash", "hung", "device_fault", "start"})
_STACKS_SECONDS = 0.3
_PING_SECONDS = 2.0
_LONGEST_PAUSE = 30.0


class Keeper:
    """Owns the child of one lane. All of it runs on the event loop."""

    def __init__(
        self,
        start: Start,
        *,
        environment: Mapping[str, str],
        limits: LaneLimits,
        on_message: Callable[[object], None],
        on_event: Callable[[LaneEvent], None],
    ) -> None:
        """``on_message`` gets what a started child says; both callbacks run on the loop and must not raise."""
        self.status: KeeperStatus = "starting"
        self.failure = ""
        self.child: LaneProcess | None = None
        self.models: tuple[str, ...] = ()
        self.restarts: Counter[str] = Counter()
        self._start, self._environment, self._limits = start, environment, limits
        self._on_message, self._on_event = on_message, on_event
        self._faults = 0
        self._asked: float | None = None  # when the child was asked whether it is there, until it answers
        self._process: LaneProcess | None = None  # from its start to its end; ``child`` only while it may get calls
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self._hello: asyncio.Future[Hello | StartFailed] = self._loop.create_future()
        self._ending: asyncio.Future[EndReason] = self._loop.create_future()

    @property
    def unanswered(self) -> float:
        """Seconds that the child has owed an answer to a question that costs it nothing; 0 where it owes none."""
        return time.monotonic() - self._asked if self.status == "up" and self._asked is not None else 0.0

    async def start(self) -> None:
        """Start the first child and wait for it. Raises LaneCrashed or LaneHung; further tries go on until ``stop``."""
        self._task = asyncio.create_task(self._run(), name=f"lane-{self._start.name}")
        while self.status == "starting":
            await self._change()
        if self.status != "up":
            raise LaneCrashed(self.failure)

    async def obtain(self) -> LaneProcess:
        """Return the child, once it is ready. Raises LaneCrashed where the lane has failed or was stopped."""
        while True:
            if self.status == "stopped":
                raise LaneCrashed(f"lane {self._start.name} was stopped")
            if self.status == "failed":
                raise LaneCrashed(self.failure)
            if self.status == "up" and self.child is not None:
                return self.child
            await self._change()

    def succeeded(self) -> None:
        """Take note that the child has done some work: it is not to blame for what went wrong before."""
        self._faults = 0

    def replace(self, child: LaneProcess, reason: EndReason) -> None:
        """Kill the child at once and start another; no new call gets this one. Nothing happens if it has gone already."""
        if child is self.child and not self._ending.done():
            self._ending.set_result(reason)
            self.child = None
            self._set("restarting")
            child.kill()

    async def give_up(self, child: LaneProcess, reason: EndReason) -> None:
        """Kill a child that does not answer, after it has been made to print where it is; wait until it is gone."""
        if child is self.child:
            self._set("restarting")
        child.dump_stacks()
        await asyncio.wait({child.exited}, timeout=_STACKS_SECONDS)
        self.replace(child, reason)
        await asyncio.wait({child.exited}, timeout=self._limits.kill)

    async def stop(self) -> None:
        """Let the child unload and end; kill it where it takes too long. Nothing of it is left afterwards."""
        was_up, process = self.status == "up", self._process
        self._set("stopped")
        self.child = None
        if process is not None:
            if was_up and not self._ending.done():
                self._ending.set_result("stop")
                process.send(Stop(), self._start.folder)
                await asyncio.wait({process.exited}, timeout=self._limits.stop)
            process.kill()
            await asyncio.wait({process.exited}, timeout=self._limits.kill)
            self._on_event(LaneEnded(lane=self._start.name, pid=process.pid, reason="stop", detail="was stopped"))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            reason, detail, pid = await self._one_child()
            self.child = self._process = None
            if self.status == "stopped":
                return
            self.restarts[reason] += 1
            self.failure = f"lane {self._start.name} {detail}"
            pause, status = 0.0, "restarting"
            if reason in _FAULTS:
                self._faults += 1
                pause = min(self._limits.restart_pause * 2 ** (self._faults - 1), _LONGEST_PAUSE)
            over = self._faults - self._limits.start_failures
            if reason in _FAULTS and over >= 0:
                pause, status = self._limits.failed_pause * min(2**over, 10), "failed"
                self.failure = f"{self.failure} (failed {self._faults} times in a row; next try in {pause:g} s)"
            log.warning("lane ended", lane=self._start.name, pid=pid, reason=reason, detail=detail, next_status=status)
            self._set("failed" if status == "failed" else "restarting")
            self._on_event(LaneEnded(lane=self._start.name, pid=pid, reason=reason, detail=detail))
            await asyncio.sleep(pause)

    async def _one_child(self) -> tuple[EndReason, str, int | None]:
        """Start a child and return when it has ended: why, how in words, and its pid."""
        begun = time.monotonic()
        self._hello, self._ending = self._loop.create_future(), self._loop.create_future()
        try:
            child = LaneProcess(self._start.name, self._environment, self._hear)
        except OSError as error:
            return "start", f"could not be started: {error}", None
        self._process = child
        try:
            await self._greet(child)
            seconds = time.monotonic() - begun
            log.info("lane started", lane=self._start.name, pid=child.pid, device=self._start.device, seconds=round(seconds, 3))
            self.child = child
            self.failure = ""
            self._set("up")
            self._on_event(LaneStarted(lane=self._start.name, pid=child.pid, seconds=seconds))
            asking = asyncio.create_task(self._keep_asking(child))
            try:
                await self._gone(child)
            finally:
                asking.cancel()
        except RetryableError as error:
            return "start", str(error), child.pid
        except Exception as error:
            log.exception("lane could not be started", lane=self._start.name)
            return "start", f"could not be started: {type(error).__name__}: {error}", child.pid
        finally:
            child.kill()
            # a wait leaves the future alone when this task is cancelled; an await would cancel it
            await asyncio.wait({child.exited})
        reason = self._ending.result() if self._ending.done() else "crash"
        return reason, child.describe_exit() if reason == "crash" else f"was replaced ({reason})", child.pid

    async def _greet(self, child: LaneProcess) -> None:
        """Wait for the hello. Raises LaneCrashed or LaneHung."""
        child.send(self._start, self._start.folder)
        waited: set[asyncio.Future[Any]] = {self._hello, child.exited}
        await asyncio.wait(waited, timeout=self._limits.start, return_when=asyncio.FIRST_COMPLETED)
        if self._hello.done():
            hello = self._hello.result()
            if isinstance(hello, Hello):
                self.models = hello.models
                return
            log.error("lane could not load its plugins", lane=self._start.name, traceback=hello.traceback)
            raise LaneCrashed(f"could not load its plugins: {hello.message}")
        if child.exited.done():
            raise LaneCrashed(child.describe_exit())
        child.dump_stacks()
        await asyncio.wait({child.exited}, timeout=_STACKS_SECONDS)
        raise LaneHung(f"did not start within {self._limits.start:g} s{child.last_lines()}")

    async def _keep_asking(self, child: LaneProcess) -> None:
        """Ask the child whether it is there, one question at a time: a process that is stopped or stuck does not answer."""
        self._asked = None
        while True:
            if self._asked is None:
                self._asked = time.monotonic()
                child.send(Ping(), self._start.folder)
            await asyncio.sleep(_PING_SECONDS)

    async def _gone(self, child: LaneProcess) -> None:
        waited: set[asyncio.Future[Any]] = {child.exited, self._ending}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not child.exited.done():
            await asyncio.wait({child.exited}, timeout=self._limits.stop + self._limits.kill)
        if not child.exited.done():
            self.failure = f"lane {self._start.name} does not end after SIGKILL: process {child.pid} is stuck in the system"
            log.error("lane does not end", lane=self._start.name, pid=child.pid)
            self._set("failed")
            await asyncio.wait({child.exited})

    def _hear(self, message: object) -> None:
        if isinstance(message, Pong):
            self._asked = None
        elif isinstance(message, Hello | StartFailed):
            if not self._hello.done():
                self._hello.set_result(message)
        else:
            self._on_message(message)

    def _set(self, status: KeeperStatus) -> None:
        if self.status != "stopped":
            self.status = status
        changed, self._changed = self._changed, self._loop.create_future()
        changed.set_result(None)

    async def _change(self) -> None:
        # shielded: one waiter that is cancelled must not take the future from the others
        await asyncio.shield(self._changed)
