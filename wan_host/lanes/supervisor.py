"""The supervisor of one lane, in the host: hands its child calls one at a time, restarts it, and tells how it stands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from wan_host.checkpoint import CheckpointPlan
from wan_host.errors import SettingsError
from wan_host.lanes.calls import PendingCall
from wan_host.lanes.devices import Device, list_devices
from wan_host.lanes.dialogue import Dialogue, MakeCall
from wan_host.lanes.hooks import DEFAULT_HOOKS
from wan_host.lanes.keeper import Keeper
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import Call, Done, LoadModel, Memory, RunEnhance, RunGenerate, Spent, Start, UnloadModel
from wan_host.lanes.state import EnhanceResult, LaneEvent, LaneKind, LaneResult, LaneState, LaneStatus
from wan_host.request import Enhancement, EnhanceRequest, Generation, GenerationRequest

log = structlog.get_logger("wan_host.lanes")

T = TypeVar("T")


class Lane:
    """One device's child process, restarted as needed. Use it from one event loop; calls wait for their turn in order.

    Every call raises the error that the hook raised, as its class in ``wan_host.errors``; ``GenerationFailed``,
    ``ModelLoadFailed`` and ``OutOfMemory`` for strangers' exceptions; ``LaneCrashed`` where the child died or the lane has
    failed; ``LaneHung`` where it showed no progress; ``DeadlineExceeded``; ``JobCancelled``. A caller whose task is cancelled
    leaves at once, and the lane is told to drop the job. Deadlines are times of ``time.monotonic``.
    """

    def __init__(
        self,
        *,
        name: str,
        device: str,
        kind: LaneKind,
        hooks: str = DEFAULT_HOOKS,
        hook_options: Mapping[str, object] | None = None,
        limits: LaneLimits | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        on_event: Callable[[LaneEvent], None] | None = None,
    ) -> None:
        """``hooks`` is ``module:function``, called in the child with ``hook_options`` as keywords (plain values).

        ``environment`` is added to the host's own, which comes without the host's secrets. ``folder`` holds memory files, for a
        moment and without a name, where the system has no memfd. ``on_event`` runs on the loop and must be quick; what it raises
        is logged.
        """
        self.name, self.kind = name, kind
        self._device = _find(device)
        self._limits = limits or LaneLimits()
        self._start = Start(
            name=name,
            device=self._device.local_name,
            hooks=hooks,
            hook_options=dict(hook_options or {}),
            folder=str(folder or ""),
        )
        self._environment = {**self._device.environment(), **(environment or {})}
        self._listener = on_event
        self._keeper: Keeper | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: list[PendingCall] = []
        self._dialogue = Dialogue(name, self._limits, self._start.folder, self._emit)

    async def start(self) -> None:
        """Start the child and wait for its hello. Raises LaneCrashed where it did not come; tries go on until ``stop``."""
        if self._keeper is not None:
            raise RuntimeError(f"lane {self.name} was started before")
        self._keeper = Keeper(
            self._start,
            environment=self._environment,
            limits=self._limits,
            on_message=self._dialogue.hear,
            on_event=self._emit,
        )
        await self._keeper.start()

    async def stop(self) -> None:
        """End the lane: calls fail with LaneCrashed, the child unloads its models or is killed. May be called twice."""
        if self._keeper is not None:
            await self._keeper.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def load(self, model: str, *, timeout: float | None = None, deadline: float | None = None) -> None:
        """Load a model unless it is there; ``timeout`` is in seconds, None for the limit of the lane."""
        pending = PendingCall(job_id="", model=model, deadline=deadline)
        await self._submit(pending, self._with_model(pending, None, load_seconds=timeout))

    async def unload(self, model: str) -> None:
        """Drop a model and give its memory back; nothing happens where it is not loaded."""
        pending = PendingCall(job_id="", model=model, deadline=None)
        await self._submit(pending, self._without_model(pending))

    async def generate(
        self,
        model: str,
        request: GenerationRequest,
        *,
        deadline: float | None = None,
        checkpoint: CheckpointPlan | None = None,
    ) -> LaneResult:
        """Generate, with the model loaded first where it is not; ``checkpoint`` says where the unfinished job is kept."""
        if checkpoint is not None:
            checkpoint = replace(checkpoint, identity={**checkpoint.identity, "device": self._device.label or self._device.name})

        def make(number: int, remaining: float | None) -> Call:
            return RunGenerate(
                call=number, job_id=request.job_id, model=model, remaining=remaining, request=request, checkpoint=checkpoint
            )

        pending = PendingCall(job_id=request.job_id, model=model, deadline=deadline)
        load, done = await self._submit(pending, self._with_model(pending, make))
        if done is None or not isinstance(done.result, Generation):
            raise TypeError(f"a generation ended with {done!r}")
        return LaneResult(generation=done.result, spent=done.spent, memory=done.memory, model_load=load)

    async def enhance(
        self,
        model: str,
        plugin: str,
        request: EnhanceRequest,
        *,
        deadline: float | None = None,
        job_id: str = "",
    ) -> EnhanceResult:
        """Enhance a prompt through ``plugin``, with the model loaded first where it is not."""

        def make(number: int, remaining: float | None) -> Call:
            return RunEnhance(call=number, job_id=job_id, model=model, remaining=remaining, plugin=plugin, request=request)

        pending = PendingCall(job_id=job_id, model=model, deadline=deadline)
        load, done = await self._submit(pending, self._with_model(pending, make))
        if done is None or not isinstance(done.result, Enhancement):
            raise TypeError(f"an enhancement ended with {done!r}")
        return EnhanceResult(enhancement=done.result, spent=done.spent, memory=done.memory, model_load=load)

    def cancel(self, job_id: str) -> None:
        """Cancel a job that waits or runs here; unknown ones are ignored. Its caller gets JobCancelled.

        A running one ends at its next step; where that takes longer than the limit ``cancel_grace``, the child is killed.
        """
        for pending in self._calls:
            if job_id and pending.job_id == job_id:
                pending.cancel()

    @property
    def state(self) -> LaneState:
        """How the lane stands at this moment."""
        keeper, exchange = self._keeper, self._dialogue.exchange
        child = keeper.child if keeper is not None else None
        pending = exchange.pending if exchange is not None else None
        status: LaneStatus = "starting"
        if keeper is not None:
            status = keeper.status if keeper.status != "up" else "idle"
        if status == "idle" and exchange is not None:
            status = "loading" if exchange.what == "load" else "busy"
        return LaneState(
            name=self.name,
            kind=self.kind,
            device=self._device.name,
            device_name=self._device.label,
            status=status,
            failure=keeper.failure if keeper is not None and keeper.status != "up" else "",
            pid=child.pid if child is not None else None,
            models=keeper.models if keeper is not None else (),
            loaded=self._dialogue.loaded(child),
            job_id=pending.job_id if pending is not None else "",
            model=pending.model if pending is not None else "",
            stage=exchange.stage if exchange is not None else "",
            step=exchange.step if exchange is not None else 0,
            total=exchange.total if exchange is not None else 0,
            silent_for=time.monotonic() - exchange.progressed if exchange is not None else None,
            unanswered=keeper.unanswered if keeper is not None else 0.0,
            waiting=len(self._calls) - (exchange is not None),
            restarts=dict(keeper.restarts) if keeper is not None else {},
            memory=self._dialogue.memory if child is not None else Memory(),
            gpu_busy_seconds=self._dialogue.busy_seconds,
        )

    async def _submit(self, pending: PendingCall, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` when it is its turn. The work outlives a caller that is cancelled, until the lane is free of it."""
        self._calls.append(pending)
        task = asyncio.create_task(self._in_turn(pending, work))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            pending.cancel()
            raise

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that left does not ask for it

    async def _in_turn(self, pending: PendingCall, work: Coroutine[Any, Any, T]) -> T:
        try:
            await pending.wait(self._turn.acquire())
            try:
                return await work
            finally:
                self._turn.release()
        finally:
            work.close()
            self._calls.remove(pending)

    async def _with_model(
        self, pending: PendingCall, make: MakeCall | None, *, load_seconds: float | None = None
    ) -> tuple[Spent | None, Done | None]:
        """Load the model where it is not loaded, then make the call."""

        def load(number: int, remaining: float | None) -> Call:
            return LoadModel(call=number, job_id=pending.job_id, model=pending.model, remaining=remaining)

        keeper = self._started()
        child = await pending.wait(keeper.obtain())
        loaded = None
        if pending.model not in self._dialogue.loaded(child):
            within = self._limits.load if load_seconds is None else load_seconds
            loaded = (await self._dialogue.talk(keeper, child, pending, load, within=within)).spent
        return loaded, await self._dialogue.talk(keeper, child, pending, make) if make is not None else None

    async def _without_model(self, pending: PendingCall) -> None:
        def unload(number: int, _remaining: float | None) -> Call:
            return UnloadModel(call=number, job_id="", model=pending.model)

        keeper = self._started()
        child = await pending.wait(keeper.obtain())
        if pending.model in self._dialogue.loaded(child):
            await self._dialogue.talk(keeper, child, pending, unload)

    def _started(self) -> Keeper:
        if self._keeper is None:
            raise RuntimeError(f"lane {self.name} was not started")
        return self._keeper

    def _emit(self, event: LaneEvent) -> None:
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            log.exception("lane listener failed", lane=self.name)


def _find(name: str) -> Device:
    """Return the device of that name; one that is not listed is taken at its word, and its lane says what is wrong."""
    try:
        return list_devices().find(name)
    except SettingsError:
        return Device(name=name, label="", memory=0)
