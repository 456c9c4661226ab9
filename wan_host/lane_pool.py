"""The lanes of a worker: one generate lane per device, one enhance lane where an enhancer is installed.

The pool gives each run a lane, passes the lanes' progress on to the runs, and turns what lanes say into metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from wan_host.checkpoint import CheckpointPlan
from wan_host.errors import JobCancelled, SettingsError
from wan_host.hooks import Hooks
from wan_host.lanes.devices import Device
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.state import (
    CallEnded,
    EnhanceResult,
    JobCheckpoint,
    JobFrames,
    JobPreview,
    JobProgress,
    LaneEnded,
    LaneEvent,
    LaneKind,
    LaneResult,
    LaneState,
)
from wan_host.lanes.supervisor import Lane
from wan_host.metrics import Metrics
from wan_host.model import ModelInfo
from wan_host.request import Enhancement, EnhanceRequest, GenerationRequest
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.vram import VramBudget

NO_ENHANCER = "no installed plugin has a model that enhances prompts; `wan-host plugins` shows what there is"


@dataclass(frozen=True, slots=True)
class Enhancer:
    """The plugin that enhances prompts, and the model it uses."""

    plugin: str
    model: ModelInfo


def choose_enhancer(hooks: Hooks, setting: str | None) -> Enhancer | None:
    """Return the enhancer that a setting names, else the only one, else None. Raises SettingsError for one that is not there."""
    models: dict[str, ModelInfo] = {}
    for model in hooks.models().values():
        if model.kind == "enhance" and model.runner in hooks.plugins_with("enhance_prompt"):
            models.setdefault(model.runner, model)
    if setting is not None and setting not in models:
        there = ", ".join(sorted(models)) or "none"
        raise SettingsError(f"WAN_HOST_ENHANCER: {setting!r} is no plugin with a model that enhances prompts; there are: {there}")
    if setting is None and len(models) > 1:
        raise SettingsError(f"WAN_HOST_ENHANCER: several plugins enhance prompts ({', '.join(sorted(models))}); name one")
    name = setting or next(iter(models), None)
    return Enhancer(name, models[name]) if name is not None else None


def _vram_limits(devices: Sequence[Device], settings: Settings) -> dict[str, int]:
    """Return MiB by device: its memory, or what the setting leaves of it. The CPU has no limit but the setting's."""
    limits = {device.name: device.memory >> 20 for device in devices if device.memory and device.name != "cpu"}
    if settings.vram_limit_gb is not None:
        allowed = int(settings.vram_limit_gb * 1024)
        limits = {device.name: min(limits.get(device.name, allowed), allowed) for device in devices}
    return limits


class LanePool:
    """All lanes of a worker."""

    def __init__(self, *, devices: Sequence[Device], hooks: Hooks, settings: Settings, metrics: Metrics) -> None:
        """Create the lanes; ``start`` starts them. Raises SettingsError for an enhancer that is not there."""
        self._metrics = metrics
        self._runs: dict[str, Run] = {}
        self._free = asyncio.Condition()
        limits = LaneLimits(load=settings.load_timeout, step=settings.step_timeout, cancel_grace=settings.cancel_grace)
        self.enhancer = choose_enhancer(hooks, settings.enhancer)

        def lane(name: str, device: Device, kind: LaneKind) -> Lane:
            return Lane(
                name=name,
                device=device.name,
                kind=kind,
                hooks="wan_host.hooks:lane_hooks",
                limits=limits,
                folder=settings.data_dir,
                on_event=self._on_event,
            )

        self._generate = [lane(f"generate-{device.name.replace(':', '')}", device, "generate") for device in devices]
        self._enhance = lane("enhance", devices[0], "enhance") if self.enhancer is not None else None
        self._taken: set[str] = set()
        self._devices = {lane.name: lane.state.device for lane in self.lanes}
        self.vram = VramBudget(lanes=self.lanes, models=hooks.models(), limits_mib=_vram_limits(devices, settings))

    @property
    def lanes(self) -> list[Lane]:
        """Every lane."""
        return [*self._generate, *([self._enhance] if self._enhance else [])]

    @property
    def generate_lanes(self) -> int:
        """How many jobs can generate at the same time."""
        return len(self._generate)

    def states(self) -> list[LaneState]:
        """Return a snapshot of every lane."""
        return [lane.state for lane in self.lanes]

    async def start(self) -> None:
        """Start every lane and wait until each has answered."""
        await asyncio.gather(*(lane.start() for lane in self.lanes))

    async def stop(self) -> None:
        """Stop every lane."""
        await asyncio.gather(*(lane.stop() for lane in self.lanes))

    async def generate(
        self, run: Run, model: ModelInfo, request: GenerationRequest, checkpoint: CheckpointPlan | None = None
    ) -> LaneResult:
        """Generate in the first lane that is free, one that holds the model already if there is a choice."""
        run.enter("waiting")
        async with self._lane(run, model.name) as lane:
            self._runs[run.job_id] = run
            try:
                async with self.vram.room_for(lane, model.name):
                    result = await lane.generate(model.name, request, deadline=run.deadline, checkpoint=checkpoint)
            finally:
                if self._runs.get(run.job_id) is run:
                    del self._runs[run.job_id]
        for stage, seconds in result.stage_seconds.items():
            run.seconds[stage] = run.seconds.get(stage, 0.0) + seconds
        return result

    async def enhance(self, run: Run, request: EnhanceRequest) -> Enhancement:
        """Enhance a job's prompt in the enhance lane."""
        return (await self.enhance_prompt(request, job_id=run.job_id, deadline=run.deadline)).enhancement

    async def enhance_prompt(self, request: EnhanceRequest, *, job_id: str = "", deadline: float) -> EnhanceResult:
        """Enhance a prompt in the enhance lane; ``deadline`` is a time of ``time.monotonic``."""
        if self._enhance is None or self.enhancer is None:
            raise SettingsError(NO_ENHANCER)
        model, plugin = self.enhancer.model.name, self.enhancer.plugin
        async with self.vram.room_for(self._enhance, model):
            return await self._enhance.enhance(model, plugin, request, job_id=job_id, deadline=deadline)

    def lanes_for(self, model: ModelInfo) -> list[Lane]:
        """Return the lanes that can hold a model: its jobs run in one of these."""
        if model.kind == "generate":
            return list(self._generate)
        return [self._enhance] if self._enhance is not None else []

    async def cancel(self, run: Run) -> None:
        """Cancel a run wherever it is: waiting for a lane, in one, or in the host's own stages."""
        run.cancel()
        for lane in self.lanes:
            lane.cancel(run.job_id)
        async with self._free:
            self._free.notify_all()

    @asynccontextmanager
    async def _lane(self, run: Run, model: str) -> AsyncIterator[Lane]:
        async with self._free:
            await self._free.wait_for(lambda: run.cancelled or len(self._taken) < len(self._generate))
            if run.cancelled:
                raise JobCancelled(f"job {run.job_id} was cancelled")
            free = [lane for lane in self._generate if lane.state.name not in self._taken]
            chosen = min(free, key=lambda lane: (lane.state.status == "failed", model not in lane.state.loaded))
            self._taken.add(chosen.state.name)
        try:
            yield chosen
        finally:
            async with self._free:
                self._taken.discard(chosen.state.name)
                self._free.notify()

    def _on_event(self, event: LaneEvent) -> None:
        if isinstance(event, JobProgress | JobCheckpoint | JobPreview | JobFrames):
            run = self._runs.get(event.job_id)
            if run is not None:
                _tell(run, event)
        elif isinstance(event, CallEnded):
            self._metrics.gpu_busy_seconds.labels(self._devices[event.lane]).inc(event.spent.busy)
            for seconds in event.spent.steps:
                self._metrics.step_seconds.labels(event.model).observe(seconds)
            if event.what == "load" and not event.error_type:
                self._metrics.model_load_seconds.labels(event.model).observe(event.spent.seconds)
        elif isinstance(event, LaneEnded) and event.reason != "stop":
            self._metrics.lane_restarts.labels(event.lane, event.reason).inc()


def _tell(run: Run, event: JobProgress | JobCheckpoint | JobPreview | JobFrames) -> None:
    match event:
        case JobProgress():
            run.stepped(event.stage, event.step, event.total)
        case JobCheckpoint():
            run.checkpointed(event.what, event.step, event.reason)
        case JobPreview():
            run.previewed(event.image)
        case JobFrames() if run.on_frames is not None:
            run.on_frames(event.clip, event.frames, event.count)
