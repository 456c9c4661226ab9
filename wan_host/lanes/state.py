"""What the host sees of a lane: snapshots, results and events. All frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wan_host.lanes.messages import CheckpointEvent, Memory, Spent
from wan_host.request import Enhancement, Generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LaneKind = Literal["generate", "enhance"]
LaneStatus = Literal["starting", "idle", "loading", "busy", "restarting", "stopped", "failed"]
EndReason = Literal["crash", "hung", "deadline", "cancel", "out_of_memory", "device_fault", "start", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """A lane at one moment.

    ``failure`` says why the status is ``failed``. ``silent_for``: seconds since the running call last made progress, None
    where none runs. ``unanswered``: seconds that the child owes the host an answer that costs it nothing. ``waiting``: calls that
    wait for their turn. ``restarts``: children lost so far, by reason. ``gpu_busy_seconds`` only grows, over restarts too.
    """

    name: str
    kind: LaneKind
    device: str
    device_name: str
    status: LaneStatus
    failure: str = ""
    pid: int | None = None
    models: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    job_id: str = ""
    model: str = ""
    stage: str = ""
    step: int = 0
    total: int = 0
    silent_for: float | None = None
    unanswered: float = 0.0
    waiting: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    gpu_busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LaneResult:
    """What one generation brought back. The frames are read-only and mapped, not copied: they go when the result goes.

    ``model_load`` is where the load's seconds went if this job had to load its model, else None.
    """

    generation: Generation
    spent: Spent
    memory: Memory
    model_load: Spent | None = None

    @property
    def stage_seconds(self) -> Mapping[str, float]:
        """Seconds by stage, the load included where there was one."""
        return self.spent.stages if self.model_load is None else {**self.model_load.stages, **self.spent.stages}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhanceResult:
    """What one enhancement brought back."""

    enhancement: Enhancement
    spent: Spent
    memory: Memory
    model_load: Spent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStarted:
    """A child is ready after ``seconds``."""

    lane: str
    pid: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEnded:
    """A child is gone, and a new one follows unless ``reason`` is ``stop``."""

    lane: str
    pid: int | None
    reason: EndReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """A call made progress; ``job_id`` is empty for work that belongs to no job."""

    lane: str
    job_id: str
    model: str
    stage: str
    step: int
    total: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobPreview:
    """A picture of an unfinished job, uint8 RGB (height, width, 3)."""

    lane: str
    job_id: str
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A job's checkpoint at ``step`` was saved, gone on from, ignored or could not be kept (``reason``)."""

    lane: str
    job_id: str
    what: CheckpointEvent
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobFrames:
    """The first ``count`` of the frames of a job's clip number ``clip`` are final; the others are yet to be written."""

    lane: str
    job_id: str
    clip: int
    frames: NDArray[np.uint8]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """A call has ended, well (``error_type`` is empty) or not: what it cost is here in both cases.

    ``what`` is ``load``, ``unload``, ``generate`` or ``enhance``. After a kill ``spent.seconds`` is the host's own measure.
    """

    lane: str
    what: str
    job_id: str
    model: str
    error_type: str
    spent: Spent
    memory: Memory


LaneEvent = LaneStarted | LaneEnded | JobProgress | JobPreview | JobCheckpoint | JobFrames | CallEnded
