"""The talk between supervisor and child: one exchange at a time, watched until it ends, well or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from wan_host.errors import DeadlineExceeded, GenerationFailed, JobCancelled, LaneCrashed, LaneHung, ModelLoadFailed, WanHostError
from wan_host.lanes import messages
from wan_host.lanes.calls import Exchange, PendingCall
from wan_host.lanes.faults import DEVICE_FAULT, OUT_OF_MEMORY, revive
from wan_host.lanes.keeper import Keeper
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import (
    Call,
    Cancel,
    CheckpointNews,
    Done,
    Failed,
    FramesReady,
    FramesShared,
    Heartbeat,
    Memory,
    Preview,
    Spent,
)
from wan_host.lanes.process import LaneProcess
from wan_host.lanes.state import CallEnded, EndReason, JobCheckpoint, JobFrames, JobPreview, JobProgress, LaneEvent

log = structlog.get_logger("wan_host.lanes")

MakeCall = Callable[[int, float | None], Call]
_REPLACEMENTS: Final[Mapping[str, EndReason]] = {OUT_OF_MEMORY: "out_of_memory", DEVICE_FAULT: "device_fault"}
_WANTED_ENDS: Final = frozenset({JobCancelled.__name__, DeadlineExceeded.__name__})
_WHAT: Final[Mapping[type[object], str]] = {
    messages.LoadModel: "load",
    messages.UnloadModel: "unload",
    messages.RunGenerate: "generate",
    messages.RunEnhance: "enhance",
}


class Dialogue:
    """Speaks with whatever child the keeper has, and remembers what the child said of itself."""

    def __init__(self, name: str, limits: LaneLimits, folder: str, emit: Callable[[LaneEvent], None]) -> None:
        self.exchange: Exchange | None = None
        self.memory = Memory()
        self.busy_seconds = 0.0
        self._name, self._limits, self._folder, self._emit = name, limits, folder, emit
        self._number = 0
        self._loaded: tuple[str, ...] = ()
        self._loaded_by: LaneProcess | None = None

    def loaded(self, child: LaneProcess | None) -> tuple[str, ...]:
        """Names of the models that this child holds; what an earlier child held went with it."""
        return self._loaded if child is not None and child is self._loaded_by else ()

    def hear(self, message: object) -> None:
        """Take a message of the child; what belongs to an exchange that is over is dropped."""
        exchange = self.exchange
        if exchange is None or getattr(message, "call", None) != exchange.number:
            return
        match message:
            case Heartbeat():
                exchange.heard(message)
                self.memory = message.memory
                self._emit(
                    JobProgress(
                        lane=self._name,
                        job_id=exchange.pending.job_id,
                        model=exchange.pending.model,
                        stage=message.stage,
                        step=message.step,
                        total=message.total,
                        note=message.note,
                    )
                )
            case Preview():
                self._emit(JobPreview(lane=self._name, job_id=exchange.pending.job_id, image=message.image))
            case CheckpointNews():
                self._emit(
                    JobCheckpoint(
                        lane=self._name,
                        job_id=exchange.pending.job_id,
                        what=message.what,
                        step=message.step,
                        reason=message.reason,
                    )
                )
            case FramesShared():
                exchange.shares(message)
            case FramesReady():
                exchange.shares(message)
                frames = exchange.shared[message.clip]
                self._emit(
                    JobFrames(
                        lane=self._name,
                        job_id=exchange.pending.job_id,
                        clip=message.clip,
                        frames=frames,
                        count=message.count,
                    )
                )
            case Done() if not exchange.reply.done():
                exchange.reply.set_result(exchange.whole(message))
            case Failed() if not exchange.reply.done():
                exchange.reply.set_result(message)

    async def talk(
        self,
        keeper: Keeper,
        child: LaneProcess,
        pending: PendingCall,
        make: MakeCall,
        *,
        within: float | None = None,
    ) -> Done:
        """Make one exchange, ``make`` being given its number and the seconds left. Raises what it ended with.

        The child is free again when this returns or raises, or it is being replaced.
        """
        pending.check()
        self._number += 1
        exchange = self.exchange = Exchange(self._number, pending, self._limits, within=within)
        call = make(exchange.number, exchange.remaining())
        exchange.what = _WHAT[type(call)]
        ended: Done | Failed | None = None
        error_type = ""
        try:
            try:
                child.send(call, self._folder)
            except OSError as error:
                raise GenerationFailed(f"{pending.subject()} could not be passed to lane {self._name}: {error}") from error
            ended = await self._watched(keeper, child, exchange)
            self.memory, self._loaded, self._loaded_by = ended.memory, ended.loaded, child
            self.busy_seconds += ended.spent.busy
            return self._outcome(keeper, child, exchange, ended)
        except WanHostError as error:
            error_type = error.error_type
            raise
        finally:
            self.exchange = None
            self._emit(
                CallEnded(
                    lane=self._name,
                    what=exchange.what,
                    job_id=pending.job_id,
                    model=pending.model,
                    error_type=error_type,
                    spent=ended.spent if ended is not None else Spent(seconds=time.monotonic() - exchange.begun),
                    memory=ended.memory if ended is not None else Memory(),
                )
            )

    async def _watched(self, keeper: Keeper, child: LaneProcess, exchange: Exchange) -> Done | Failed:
        """Wait for the reply. Raises once the child has died or has been killed for its silence."""
        pending = exchange.pending
        told = False
        while not exchange.reply.done():
            if child.exited.done():
                raise self._lost(keeper, child, exchange)
            if pending.cancelled.done() and not told:
                told = True
                child.send(Cancel(call=exchange.number), self._folder)
            if exchange.moved.done():
                exchange.moved = asyncio.get_running_loop().create_future()
            end, reason = exchange.patience()
            left = end - time.monotonic()
            if left <= 0:
                silent = time.monotonic() - exchange.progressed
                await keeper.give_up(child, reason)
                raise self._given_up(child, exchange, reason, silent)
            waited: set[asyncio.Future[Any]] = {exchange.reply, exchange.moved, child.exited}
            if not told:
                waited.add(pending.cancelled)
            # heartbeats wake nobody: they have moved the end, which the loop finds when the old one is reached
            await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return exchange.reply.result()

    def _outcome(self, keeper: Keeper, child: LaneProcess, exchange: Exchange, ended: Done | Failed) -> Done:
        """Return a Done, or raise the error that a Failed describes; has the child replaced where it said so."""
        pending = exchange.pending
        if isinstance(ended, Done):
            if exchange.what in ("generate", "enhance"):
                keeper.succeeded()
            if pending.cancelled.done():
                raise JobCancelled(f"{pending.subject()} was cancelled")
            return ended
        fields = {"lane": self._name, "job_id": pending.job_id, "model": pending.model, "message": ended.message}
        if ended.error in _WANTED_ENDS:
            log.info("lane call ended early", **fields)
        else:
            log.warning("lane call failed", **fields, error=ended.error, restart=ended.restart, traceback=ended.traceback)
        if ended.restart:
            keeper.replace(child, _REPLACEMENTS[ended.restart])
        if ended.error == JobCancelled.__name__ and keeper.status == "stopped":
            raise LaneCrashed(f"lane {self._name} was stopped {exchange.where()} of {pending.subject()}")
        if ended.error == DeadlineExceeded.__name__ and exchange.within is not None and (pending.remaining() or 1) > 0:
            raise ModelLoadFailed(f"loading model {pending.model!r} took longer than {exchange.within:g} s")
        raise revive(ended.error, ended.message)

    def _lost(self, keeper: Keeper, child: LaneProcess, exchange: Exchange) -> WanHostError:
        where = f"{exchange.where()} of {exchange.pending.subject()}"
        if keeper.status == "stopped":
            return LaneCrashed(f"lane {self._name} was stopped {where}")
        return LaneCrashed(f"lane {self._name}, {where}, {child.describe_exit()}")

    def _given_up(self, child: LaneProcess, exchange: Exchange, reason: EndReason, silent: float) -> WanHostError:
        subject, where, grace = exchange.pending.subject(), exchange.where(), self._limits.cancel_grace
        match reason:
            case "cancel":
                return JobCancelled(f"{subject} was cancelled {where}; it did not end within {grace:g} s and was killed")
            case "deadline":
                return DeadlineExceeded(f"{subject} ran out of time {where}; it did not end within {grace:g} s and was killed")
            case _:
                return LaneHung(f"lane {self._name} made no progress for {silent:.0f} s {where} of {subject}{child.last_lines()}")
