"""The stages of a run: references, enhancement, generation, encoding, postprocessing, publishing.

The same code serves ``wan-host run`` and ``wan-host generate``. Hooks of the host process block, so they run in threads,
so many per stage; a hook that outlives its deadline is no longer waited for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import stamina
import structlog

from wan_host import encoding, references
from wan_host.capacity import calls_of_a_stage
from wan_host.checkpoint import CheckpointPlan
from wan_host.checkpoint_store import CheckpointStore
from wan_host.context import StageContext
from wan_host.early_encoding import EarlyEncoding
from wan_host.errors import (
    DeadlineExceeded,
    PostprocessFailed,
    PublishFailed,
    PublishRefused,
    RetryableError,
    UnsupportedRequest,
    WanHostError,
)
from wan_host.hooks import Hooks
from wan_host.job import Job, JobPolicy, resolve_job
from wan_host.lane_pool import NO_ENHANCER, LanePool
from wan_host.lanes.state import LaneResult
from wan_host.media import DerivedFile, Media, OutputFile
from wan_host.model import ModelInfo
from wan_host.payload import Payload
from wan_host.reporting import Outcome
from wan_host.request import Clip, Enhancement, EnhanceRequest, GenerationRequest
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.threads import Crowded, StrangerThreads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
_CONTENT_TYPES = {"mp4": "video/mp4", "png": "image/png"}
_LONGEST_PUBLISH_PAUSE = 10.0
_GRACE_AFTER_DEADLINE = 5.0
"""Seconds that a hook has to notice its deadline before the host turns away from it."""
log = structlog.get_logger("wan_host.stages")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """What a run made: the encoded assets, every file that is to be published, and what was measured."""

    media: tuple[Media, ...]
    files: tuple[OutputFile, ...]
    outcome: Outcome


def resolve(payload: Payload, *, hooks: Hooks, settings: Settings, seed: int) -> Job:
    """Decide what a payload means with these plugins and settings; ``seed`` is used where it brings none of its own."""
    policy = JobPolicy(
        default_model=hooks.registry.default_model(settings.model),
        max_prompt_characters=settings.max_prompt_characters,
        frame_processors=hooks.frame_processors(),
    )
    return resolve_job(payload, models=hooks.models(), policy=policy, seed=seed)


class Stages:
    """The stages, with what they need of the worker."""

    def __init__(self, *, hooks: Hooks, pool: LanePool, settings: Settings) -> None:
        """``pool`` must be started."""
        self._hooks, self._pool, self._settings = hooks, pool, settings
        self._threads = StrangerThreads(calls_of_a_stage(pool.generate_lanes))
        self.checkpoints = CheckpointStore(hooks=hooks, settings=settings)
        self._limits = references.ReferenceLimits(
            max_bytes=settings.reference_max_bytes,
            max_pixels=settings.reference_max_pixels,
            timeout=settings.reference_timeout,
            allowed_hosts=frozenset(settings.reference_hosts),
        )

    def resolve(self, payload: Payload, *, seed: int) -> Job:
        """Decide what a payload means with these plugins and settings; ``seed`` is used where it brings none of its own."""
        return resolve(payload, hooks=self._hooks, settings=self._settings, seed=seed)

    def is_loaded(self, model: str) -> bool:
        """Tell whether a lane holds a model."""
        return any(model in state.loaded for state in self._pool.states())

    async def produce(self, run: Run, job: Job) -> Product:
        """Take a run from its references to its files. Raises WanHostError."""
        request = dataclasses.replace(await self._fetch(run, job), attempt=run.attempt)
        enhancement = await self._enhance(run, job)
        request = dataclasses.replace(request, prompt=enhancement.prompt)
        plan = await self.checkpoints.prepare(run, job.model, request)
        result, media = await self._generate(run, job.model, request, plan)
        with run.timed("postprocess"):
            derived = [file for item in media for file in await self._postprocess(run, item)]
        outcome = Outcome(
            enhancement_source=enhancement.source,
            enhanced_prompt=enhancement.prompt if enhancement.source != "none" else None,
            enhancement_note=enhancement.reason,
            vram_mib=result.memory.peak_mib,
            generated=result.generation.metadata,
        )
        files = _output_files(job, media, derived)
        return Product(media=tuple(media), files=files, outcome=outcome)

    async def publish(self, run: Run, files: Sequence[OutputFile]) -> dict[tuple[int, str], str]:
        """Publish every file, each until it is there; return the urls by asset index and role."""
        with run.timed("publish"):
            urls = [await self._publish_one(run, file) for file in files]
        return {(file.asset_index, file.role): url for file, url in zip(files, urls, strict=True)}

    async def _blocking(
        self,
        run: Run,
        work: Callable[[StageContext], T],
        *,
        timeout: float | None = None,
        past_deadline: bool = False,
        stage: str = "",
    ) -> T:
        """Run blocking work of ``stage`` (the run's) in a thread, for ``timeout`` seconds (the setting's) within the deadline."""
        stage = stage or run.stage
        context = run.context(timeout or self._settings.stage_timeout, past_deadline=past_deadline)
        context.check()
        limit = asyncio.timeout(context.remaining() + _GRACE_AFTER_DEADLINE)
        try:
            async with limit:
                return await self._threads.run(stage, lambda: work(context))
        except Crowded as error:
            raise RetryableError(f"stage {error}") from error
        except TimeoutError:
            if not limit.expired():  # the work's own: a socket's, say
                raise
            context.cancel()
            raise DeadlineExceeded(f"stage {stage} of job {run.job_id} did not end within its time") from None
        except asyncio.CancelledError:
            context.cancel()
            raise

    async def _fetch(self, run: Run, job: Job) -> GenerationRequest:
        if not job.references and not job.subjects:
            return job.request
        with run.timed("fetch"):
            loaded = await self._blocking(
                run,
                lambda context: references.load_references(
                    job.references,
                    job.subjects,
                    width=job.request.width,
                    height=job.request.height,
                    context=context,
                    limits=self._limits,
                    fetch_private=lambda uri: self._hooks.fetch_reference(uri, context),
                ),
            )
        return dataclasses.replace(job.request, references=loaded)

    async def _enhance(self, run: Run, job: Job) -> Enhancement:
        original = Enhancement(prompt=job.request.prompt, source="none")
        if not job.enhance:
            return original
        enhancer = self._pool.enhancer
        if enhancer is None:
            if self._settings.enhance_failure == "fail":
                raise UnsupportedRequest(f"type: {job.type} asks for an enhanced prompt, but {NO_ENHANCER}")
            return dataclasses.replace(original, reason=NO_ENHANCER)
        with run.timed("enhance"):
            request = EnhanceRequest(
                prompt=job.request.prompt,
                job_type=job.type,
                media=job.request.media,
                max_tokens=job.model.prompt_tokens,
            )
            try:
                return await self._pool.enhance(run, request)
            except RetryableError as error:
                if self._settings.enhance_failure == "fail":
                    raise
                log.warning("enhancement failed, the prompt is used as it is", job=run.job_id, error=str(error))
                return dataclasses.replace(original, reason=f"{error.error_type}: {error}")

    async def _generate(
        self, run: Run, model: ModelInfo, request: GenerationRequest, plan: CheckpointPlan | None
    ) -> tuple[LaneResult, list[Media]]:
        """Generate and encode, each frame as soon as the lane says that it is final."""
        early = EarlyEncoding(lambda index, frames, ready: self._encode(run, request, index, frames, ready))
        run.on_frames = early.heard
        try:
            result = await self._pool.generate(run, model, request, plan)
            with run.timed("encode"):
                return result, [
                    await self._finished(run, early, index, clip) for index, clip in enumerate(result.generation.clips)
                ]
        finally:
            run.on_frames = None
            await early.close()

    async def _encode(
        self, run: Run, request: GenerationRequest, index: int, frames: NDArray[np.uint8], ready: encoding.Ready | None
    ) -> Media:
        """Encode one clip; with ``ready``, while the lane makes it, for as long as the job may take."""

        def encode(context: StageContext) -> Media:
            return encoding.encode_asset(
                Clip(frames=frames, seed=request.seed + index),
                asset_index=index,
                kind=request.media,
                fps=request.fps,
                workdir=run.workdir,
                context=context,
                finer=request.reference_frames,
                ready=ready,
            )

        return await self._blocking(run, encode, timeout=None if ready is None else math.inf, stage="encode")

    async def _finished(self, run: Run, early: EarlyEncoding, index: int, clip: Clip) -> Media:
        """Return an encoded clip; one that was begun early has the stage's time from now on."""
        try:
            async with asyncio.timeout(self._settings.stage_timeout + _GRACE_AFTER_DEADLINE) as limit:
                return await early.finish(index, clip)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"stage encode of job {run.job_id} did not end within its time") from None

    async def _postprocess(self, run: Run, media: Media) -> list[DerivedFile]:
        try:
            return await self._blocking(run, lambda context: self._hooks.postprocess(media, context))
        except WanHostError:
            raise
        except Exception as error:
            raise PostprocessFailed(f"{type(error).__name__}: {error}") from error

    async def _publish_one(self, run: Run, file: OutputFile) -> str:
        """Publish one file, again and again for the time that the setting allows. The work is done: it is worth the wait."""
        try:  # nearly always the only try
            return await self._publish_once(run, file)
        except PublishFailed as error:
            log.warning("publishing is repeated", job=run.job_id, key=file.key, error=str(error))
        attempts = stamina.retry_context(
            on=PublishFailed,
            attempts=None,
            timeout=self._settings.publish_hours * 3600,
            wait_initial=0.2,
            wait_max=_LONGEST_PUBLISH_PAUSE,
        )
        async for attempt in attempts:
            with attempt:
                return await self._publish_once(run, file)
        raise AssertionError("unreachable: the last attempt raises")

    async def _publish_once(self, run: Run, file: OutputFile) -> str:
        publisher = self._settings.publisher
        run.progressed()
        try:
            published = await self._blocking(
                run,
                lambda context: self._hooks.publish(publisher, file, context),
                timeout=self._settings.publish_timeout,
                past_deadline=True,
            )
        except (PublishRefused, PublishFailed):
            raise
        except DeadlineExceeded as error:
            raise PublishFailed(f"publisher {publisher}: {file.key} took longer than WAN_HOST_PUBLISH_TIMEOUT") from error
        except WanHostError as error:
            if not isinstance(error, RetryableError):
                raise
            raise PublishFailed(str(error)) from error
        except Exception as error:
            raise PublishFailed(f"publisher {publisher}: {type(error).__name__}: {error}") from error
        if published.file_size_bytes != file.file_size_bytes:
            there, sent = published.file_size_bytes, file.file_size_bytes
            raise PublishFailed(f"publisher {publisher}: {file.key} has {there} bytes in the store, {sent} were sent")
        run.progressed()
        return published.url


def _output_files(job: Job, media: Sequence[Media], derived: Sequence[DerivedFile]) -> tuple[OutputFile, ...]:
    """Name every file by the contract: ``{user_id}/{job_id}/{i}.mp4``, ``{i}.thumb.webp``, ``{i}.{role}{suffix}``."""
    names: Mapping[str, str] = {"thumbnail": "thumb"}
    files = [
        (item.asset_index, "asset", item.path, f"{item.asset_index}.{item.format}", _CONTENT_TYPES[item.format]) for item in media
    ]
    files += [
        (
            item.asset_index,
            item.role,
            item.path,
            f"{item.asset_index}.{names.get(item.role, item.role)}{item.path.suffix}",
            item.content_type,
        )
        for item in derived
    ]
    return tuple(
        OutputFile(
            job_id=job.id,
            user_id=job.user_id,
            asset_index=index,
            role=role,
            path=path,
            key=f"{job.user_id}/{job.id}/{name}",
            content_type=content_type,
            file_size_bytes=path.stat().st_size,
        )
        for index, role, path, name, content_type in files
    )
