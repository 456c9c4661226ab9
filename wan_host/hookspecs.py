"""The hooks of wan-host: everything that a plugin can do, in one file.

A plugin is a module (or any object) named by an entry point in the group ``wan_host``; its functions marked with
``@wan_host.hookimpl`` are its hooks. They are plain synchronous functions. A hook may leave out parameters that it does
not use. This module imports nothing heavy and is the only place where hooks are specified.

Two kinds of process call hooks. The *host* process runs them in a bounded pool of threads, each with a deadline. A *lane* is
a child process that owns one device and its models; it calls one hook at a time, on its main thread. Plugins are imported
in both, so modules that need torch import it inside functions.
"""

# The body of a specification is its docstring:
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from wan_host.context import HookContext, LaneContext
    from wan_host.frame_processors import FrameProcessor
    from wan_host.media import DerivedFile, Media, OutputFile, PublishedFile
    from wan_host.model import ModelInfo
    from wan_host.report import Delivery, Report
    from wan_host.request import Clip, Enhancement, EnhanceRequest, Generation, GenerationRequest

PROJECT = "wan_host"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker, as registration needs it: ``url`` is its public address if a setting or RunPod gives one."""

    worker_id: str
    version: str
    host: str
    port: int
    url: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginCommand:
    """A command for the command line: ``group`` is an existing group (``models``) or empty for the top level."""

    command: click.Command
    group: str = ""


@hookspec
def list_models() -> Iterable[ModelInfo]:
    """Offer models. Called once in the host and once in each lane, at start.

    Return ModelInfo objects: metadata only, so neither import torch nor read large files. Where it raises, or a name is
    taken already, the plugin is quarantined: its error is shown and none of its hooks is called.

        @hookimpl
        def list_models():
            return [ModelInfo(name="my-wan", family="wan", runner="wan21", path="/models/my-wan", job_types=...)]
    """


@hookspec(firstresult=True)
def load_model(model: ModelInfo, context: LaneContext) -> object:
    """Load a model that names this plugin as its runner. Called in a lane, before the first job that needs the model.

    Return any object; the lane keeps it and passes it to ``generate`` or ``enhance_prompt``. If it has a method ``close``,
    that is called before the lane drops it. Call ``context.progress`` while files load. Any exception fails the attempt
    as ``model_load_failed``; the lane lives on, unless it was a CUDA fault.

        @hookimpl
        def load_model(model, context):
            return Pipeline.from_pretrained(model.path).to(context.device)
    """


@hookspec(firstresult=True)
def enhance_prompt(request: EnhanceRequest, model: object, context: LaneContext) -> Enhancement:
    """Rewrite a prompt. Called in the enhance lane, by the plugin that ``WAN_HOST_ENHANCER`` chooses, with its loaded model.

    Return an Enhancement; where the result is no good, return the original with ``source="none"`` and a reason. What happens
    when it raises is the setting ``WAN_HOST_ENHANCE_FAILURE``: the job goes on with its own prompt, or fails.

        @hookimpl
        def enhance_prompt(request, model, context):
            return Enhancement(prompt=model(request.prompt, request.max_tokens), source="my_enhancer")
    """


@hookspec(firstresult=True)
def generate(request: GenerationRequest, model: object, context: LaneContext) -> Generation:
    """Make the clips of one job. Called in a lane of the model's runner, with what its ``load_model`` returned.

    Return a Generation with ``request.num_images`` clips (1 for videos) of exactly ``(request.frames, request.height,
    request.width, 3)`` uint8 RGB; clip i comes from ``request.seed + i``. Call ``context.step`` after every denoising step
    and ``context.progress`` between other pieces of work: both raise when the job is cancelled. The same request must
    give the same frames, whatever ran before. Exceptions fail the attempt; UnsupportedRequest fails the job.

        @hookimpl
        def generate(request, model, context):
            frames = model.sample(request.prompt, request.seed, on_step=context.step)
            return Generation(clips=(Clip(frames=frames, seed=request.seed),))
    """


@hookspec(firstresult=True)
def describe_processor() -> FrameProcessor:
    """Say what ``process_frames`` makes of a clip's shape. Called in the host once and in each lane, at start.

    The host plans a job by it: interpolation by ``rate`` has the model make fewer frames, and the published file still has
    exactly ``config.frames``; ``scale`` makes it larger than ``config.width`` and ``config.height``. A plugin without this hook
    keeps number and size. Where it raises, the plugin is quarantined.

        @hookimpl
        def describe_processor():
            return FrameProcessor(scale=2)
    """


@hookspec(firstresult=True)
def process_frames(clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:
    """Change the frames of one clip, frames to frames (interpolation, upscaling). Called in the lane after ``generate``.

    Runs for the plugins that ``config.postprocess`` names, in the payload's order, each once; each gets what the one before
    returned. Return a Clip of exactly ``(request.frames, request.height, request.width, 3)`` uint8 RGB: here they are what this
    processor must return, planned by its ``describe_processor``. Call ``context.progress`` between pieces of work. The same clip
    must give the same frames. Exceptions fail the attempt; UnsupportedRequest fails the job.

        @hookimpl
        def process_frames(clip, request, context):
            return Clip(frames=clip.frames[:, ::-1], seed=clip.seed)
    """


@hookspec
def postprocess(media: Media, context: HookContext) -> Iterable[DerivedFile]:
    """Derive files from an encoded asset (a thumbnail). Called in the host once per asset, before anything is published.

    All plugins run, in the order of their names. Write into ``context.workdir`` and return DerivedFile objects; role
    ``thumbnail`` becomes the asset's ``thumbnail_url``. An exception fails the attempt as ``postprocess_failed``.

        @hookimpl
        def postprocess(media, context):
            return [DerivedFile(asset_index=media.asset_index, role="sheet", path=..., content_type="image/webp")]
    """


@hookspec(firstresult=True)
def publish(file: OutputFile, context: HookContext) -> PublishedFile:
    """Put a file where the job's owner finds it. Called in the host per file, by the plugin that ``WAN_HOST_PUBLISHER`` chooses.

    Must replace what stands at ``file.key`` already. Return a PublishedFile with the size that the store confirms: where it
    differs from ``file.file_size_bytes`` the host does not believe it. Raise PublishRefused for what will never work
    (credentials, bucket, quota), anything else for what may: the host retries that.

        @hookimpl
        def publish(file, context):
            return PublishedFile(url=f"bucket/{file.key}", file_size_bytes=store.put(file.key, file.path))
    """


@hookspec(firstresult=True)
def fetch_reference(uri: str, context: HookContext) -> bytes | None:
    """Fetch a reference image from a private store. Called in the host for references that are no http(s) or ``data:`` URL.

    Return the bytes, or None for what this plugin does not claim. Raise ReferenceRejected for what this job's owner
    (``context.user_id``) may not read or what is not there, anything else for what may work later.

        @hookimpl
        def fetch_reference(uri, context):
            return store.get(uri) if uri.startswith(f"library/{context.user_id}/") else None
    """


@hookspec
def deliver_report(report: Report, context: HookContext) -> Delivery | None:
    """Send a report to a receiver. Called in the host for every report; every configured sink gets each one.

    Return a Delivery, or None where this sink is not configured. Reports of a job's end are repeated for hours until every
    sink accepts or refuses them: send ``report.idempotency_key`` along. An exception counts as ``retry``.

        @hookimpl
        def deliver_report(report, context):
            return Delivery(outcome="accepted") if post(report.body()).ok else Delivery(outcome="retry")
    """


@hookspec
def worker_started(worker: WorkerInfo) -> None:
    """Learn that a worker is ready for jobs. Called in the host once, when ``/ready`` first answers 200.

    Exceptions are logged; the worker goes on.

        @hookimpl
        def worker_started(worker):
            registry.add(worker.url)
    """


@hookspec
def worker_stopping(worker: WorkerInfo) -> None:
    """Learn that a worker takes no more jobs. Called in the host once, before it waits for running jobs.

    Exceptions are logged; the worker goes on stopping.

        @hookimpl
        def worker_stopping(worker):
            registry.remove(worker.url)
    """


@hookspec
def add_commands() -> Iterable[PluginCommand]:
    """Add commands to the command line. Called when a command is asked for that the host lacks, and by ``wan-host plugins``.

    Return PluginCommand objects. Import heavy modules inside the commands. Exceptions quarantine the plugin.

        @hookimpl
        def add_commands():
            return [PluginCommand(command=pull, group="models")]
    """
