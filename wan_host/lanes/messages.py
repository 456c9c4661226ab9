"""What host and lane say to each other. Every message is a frozen dataclass; ``call`` numbers the calls of one child from 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from wan_host.checkpoint import CheckpointPlan
from wan_host.request import Enhancement, EnhanceRequest, Generation, GenerationRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CheckpointEvent = Literal["saved", "resumed", "ignored", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The device's memory as the lane's own allocator sees it, in bytes; all 0 on a CPU and before the first use.

    ``used``: in live tensors now; ``reserved``: held by the allocator now; ``peak``: the most in live tensors since the current
    or last call began; ``total``: what the device has.
    """

    used: int = 0
    reserved: int = 0
    peak: int = 0
    total: int = 0

    @property
    def peak_mib(self) -> int:
        """The peak in MiB, as reports have it."""
        return round(self.peak / 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Where the seconds of one call went.

    ``seconds``: all of it, in the lane. ``stages``: by stage, a stage inside another counted once, for the inner one.
    ``steps``: each denoising step. ``busy``: inside ``generate`` and ``process_frames`` on a GPU, 0 on a CPU.
    """

    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()
    busy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first message to a child. ``folder`` is where memory files go on systems without memfd."""

    name: str
    device: str
    hooks: str
    hook_options: Mapping[str, object]
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """Load ``model``; ``remaining`` seconds are left of the deadline, None where there is none."""

    call: int
    job_id: str
    model: str
    remaining: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadModel:
    """Drop ``model`` and give its memory back; nothing happens where it is not loaded."""

    call: int
    job_id: str
    model: str
    remaining: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGenerate:
    """Generate with a model that is loaded."""

    call: int
    job_id: str
    model: str
    remaining: float | None
    request: GenerationRequest
    checkpoint: CheckpointPlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnhance:
    """Enhance a prompt through ``plugin`` with a model that is loaded."""

    call: int
    job_id: str
    model: str
    remaining: float | None
    plugin: str
    request: EnhanceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End a call at its next check; a call that has ended already is left alone."""

    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Cancel what runs, unload everything and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Ask whether the child still answers; whatever its main thread does, its control thread can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """The answer to a Ping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The child is ready; ``models`` are the names that it can load."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """The child could not load its hooks and ends."""

    message: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A call makes progress: ``step`` of ``total`` denoising steps are done (0 of 0 before the first)."""

    call: int
    stage: str
    step: int
    total: int
    note: str
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preview:
    """A small picture of the unfinished result, uint8 RGB (height, width, 3)."""

    call: int
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointNews:
    """What became of a call's checkpoint at ``step``; ``reason`` says why one was ``ignored`` or ``failed`` to be kept."""

    call: int
    what: CheckpointEvent
    step: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FramesShared:
    """Where the frames of clip ``clip`` will be: the lane writes them into a memory file that the host has mapped from now on."""

    call: int
    clip: int
    frames: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesReady:
    """The first ``count`` frames of a shared clip are final."""

    call: int
    clip: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Done:
    """A call has ended well; ``loaded`` are the models that the lane now holds.

    ``shared`` are the numbers of the clips whose frames the host has already: in the result they are empty.
    """

    call: int
    result: Generation | Enhancement | None
    spent: Spent
    memory: Memory
    loaded: tuple[str, ...]
    shared: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call has ended with an error: a class name of ``wan_host.errors``, its message, and the traceback for the log.

    ``restart`` is why the process must be replaced, empty where it need not.
    """

    call: int
    error: str
    message: str
    traceback: str
    restart: str
    spent: Spent
    memory: Memory
    loaded: tuple[str, ...]


Call = LoadModel | UnloadModel | RunGenerate | RunEnhance
ToLane = Start | LoadModel | UnloadModel | RunGenerate | RunEnhance | Cancel | Stop | Ping
ToHost = Hello | StartFailed | Pong | Heartbeat | Preview | CheckpointNews | FramesShared | FramesReady | Done | Failed
