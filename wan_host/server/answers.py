"""What the routes answer, typed: OpenAPI and docs/http.md follow from here. Times are Unix seconds, sizes bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

JobStatus = Literal["waiting", "claimed", "running", "published", "completed", "report_refused", "failed", "cancelled"]
ENDED = frozenset({"published", "completed", "report_refused", "failed", "cancelled"})
"""Statuses in which nothing is generated any more."""


class LaneHealth(BaseModel):
    """A lane at this moment."""

    name: str
    device: str
    status: str
    loaded: list[str]
    job_id: str
    stage: str
    step: int
    total: int
    failure: str


class PluginHealth(BaseModel):
    """A plugin that was found."""

    name: str
    distribution: str
    version: str
    status: str
    error: str


class Health(BaseModel, extra="allow"):
    """Beside these, ``{family}_model_loaded`` for every family of models. ``problems`` says why it is not ready."""

    status: Literal["healthy"] = "healthy"
    wan_model_loaded: bool
    qwen_model_loaded: bool
    device: str
    version: str
    worker_id: str
    uptime: float
    ready: bool
    problems: list[str]
    key_required: bool
    lanes: list[LaneHealth]
    plugins: list[PluginHealth]


class Readiness(BaseModel):
    """``problems`` says why jobs cannot be taken."""

    ready: bool
    problems: list[str]


class Progress(BaseModel):
    """How far a job is: ``step`` of ``total`` denoising steps (0 of 0 where there are none yet)."""

    stage: str = ""
    step: int = 0
    total: int = 0


class AssetAnswer(BaseModel):
    """A published asset. ``url`` and ``thumbnail_url`` as reports have them; ``name`` and ``thumbnail`` for the assets' route."""

    type: str
    url: str
    thumbnail_url: str | None = None
    name: str
    thumbnail: str | None = None
    derived: dict[str, str] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)


class JobAnswer(BaseModel):
    """What is known of a job."""

    id: str
    status: JobStatus
    type: str = ""
    user_id: str = ""
    model: str | None = None
    prompt: str = ""
    priority: int = 0
    seed: int | None = None
    attempts: int = 0
    cancelling: bool = False
    worker: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    progress: Progress = Field(default_factory=Progress)
    seconds_left: float | None = None
    error: dict[str, Any] | None = None
    assets: list[AssetAnswer] = Field(default_factory=list)
    report_state: str = ""
    report_error: str = ""


class FullJobAnswer(JobAnswer):
    """One job, with its payload (``data:`` URIs shortened, below 32 levels ``...``) and the metadata of its report."""

    queue_position: int | None = None
    seconds_until_start: float | None = None
    payload: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)


class JobsAnswer(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobAnswer]


class Submitted(BaseModel):
    """A job that was pushed. ``known``: the status that its id had before; the queue then does what it does with duplicates."""

    id: str
    known: JobStatus | None
    url: str
    events: str


class SubmittedAnswer(BaseModel):
    """The jobs that were pushed, in their order."""

    jobs: list[Submitted]


class CancelAnswer(BaseModel):
    """``cancelled``: it waited; ``cancelling``: its worker has been told and stops within a step."""

    id: str
    outcome: Literal["cancelled", "cancelling"]


class RetryAnswer(BaseModel):
    """``waiting``: it runs anew; ``published``: its report is sent anew."""

    id: str
    status: JobStatus


class WorkerAnswer(BaseModel):
    """A worker that was seen within a day; ``jobs`` maps the ids that it holds to their status."""

    id: str
    since: float
    seen: float
    alive: bool
    about: dict[str, str]
    jobs: dict[str, str]


class WorkersAnswer(BaseModel):
    """The fleet, the latest first."""

    workers: list[WorkerAnswer]


class JobProgress(BaseModel):
    """The event ``progress``. The last two are for jobs that wait: how many are before it, and an estimate."""

    job_id: str
    status: str
    attempt: int = 0
    stage: str = ""
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    queue_position: int | None = None
    seconds_until_start: float | None = None


class Preview(BaseModel):
    """The event ``preview``: a small picture of the unfinished result as a ``data:`` URI, made at ``step``."""

    step: int
    width: int
    height: int
    image: str


class EnhanceAnswer(BaseModel):
    """The seed's answer. ``enhancement_source`` is ``none`` where the original stands; ``enhancement_note`` says why."""

    success: Literal[True]
    enhanced_prompt: str
    original_prompt: str
    enhancement_source: str
    enhancement_applied: bool
    enhancement_note: str = ""
    processing_time: float
    model: str


class ModelMemory(BaseModel):
    """A model: ``vram_bytes`` is what its weights need (0: unknown), ``loaded_in`` the lanes that hold it."""

    name: str
    family: str
    kind: Literal["generate", "enhance"]
    runner: str
    vram_bytes: int
    loaded_in: list[str]


class LaneMemory(BaseModel):
    """A lane's memory in bytes, as its own allocator sees it; all 0 on a CPU."""

    name: str
    kind: Literal["generate", "enhance"]
    device: str
    status: str
    loaded: list[str]
    used: int
    reserved: int
    peak: int
    total: int


class MemoryAnswer(BaseModel):
    """Every model and every lane."""

    models: list[ModelMemory]
    lanes: list[LaneMemory]


class MemoryChange(BaseModel):
    """What was asked for; ``done`` is false while it goes on."""

    model: str
    lanes: list[str]
    done: bool


class DebugAnswer(BaseModel):
    """How the worker is set up. ``wan_generate_path`` and ``model_paths`` (by family) are the seed's fields."""

    wan_generate_path: str | None
    model_paths: dict[str, str]
    models: dict[str, str]
    settings: dict[str, Any]
    environment: dict[str, str]
