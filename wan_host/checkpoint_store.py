"""Where checkpoints of unfinished jobs live: a file in the data folder, and, if set, a copy in the store for other machines.

A checkpoint only saves time. Nothing about it fails a job: what cannot be kept, found or read is logged, and the job begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from pathlib import Path

import structlog

from wan_host import __version__
from wan_host.checkpoint import CheckpointPlan, identify, step_of
from wan_host.context import StageContext
from wan_host.errors import GenerationFailed, JobCancelled, LaneCrashed, LaneHung, PublishRefused, WanHostError
from wan_host.hooks import Hooks
from wan_host.media import OutputFile
from wan_host.model import ModelInfo
from wan_host.request import GenerationRequest
from wan_host.run import Run
from wan_host.settings import Settings
from wan_host.threads import StrangerThreads

NAME = "checkpoint.safetensors"
_HAND_BACK_SECONDS = 5.0
"""How long a job that is handed back waits for the copy of its last checkpoint."""
_ENDED_SECONDS = 10.0
"""How long a job that has ended, or is tried again, waits for a store to forget its checkpoint."""
_ENDED = b"this job has ended\n"
"""What replaces a checkpoint in the store: publishers replace files, and delete none."""
log = structlog.get_logger("wan_host.checkpoints")


class CheckpointStore:
    """The checkpoints of a data folder. Methods are called on the event loop."""

    def __init__(self, *, hooks: Hooks, settings: Settings) -> None:
        """Without ``checkpoint_every`` nothing is kept."""
        self._hooks, self._settings = hooks, settings
        self._threads = StrangerThreads(limit=16)
        self._copies: dict[str, asyncio.Task[None]] = {}
        self._copied: dict[str, int] = {}

    async def prepare(self, run: Run, model: ModelInfo, request: GenerationRequest) -> CheckpointPlan | None:
        """Say how the lane is to keep this run's checkpoint, and bring a later one from the store first; None where it is off."""
        every = self._settings.checkpoint_every
        if every is None or run.token == 0:  # no lease, no other attempt
            return None
        if self._settings.checkpoint_store and run.attempt > 1:
            await self._fetch(run)
        run.on_checkpoint = partial(self._told, run)
        runner = next((f"{item.name} {item.version}" for item in self._hooks.registry.records if item.name == model.runner), "")
        identity = identify(request, model, {"wan-host": __version__, "runner": runner})
        return CheckpointPlan(path=str(self._path(run)), every=every, identity=identity)

    async def distrust(self, run: Run, error: Exception) -> None:
        """Drop the checkpoint of a run whose failure it may have caused, so that it cannot use up every attempt."""
        if isinstance(error, GenerationFailed) or (run.resumed_at and isinstance(error, LaneCrashed | LaneHung)):
            await self.drop(run)

    async def drop(self, run: Run) -> None:
        """Forget the checkpoint of a job that has ended. No fault of a disk makes anything else of the end that it had."""
        try:
            self._path(run).unlink(missing_ok=True)
        except OSError as error:
            log.warning("checkpoint cannot be removed", job=run.job_id, error=str(error))
        if (task := self._copies.pop(run.job_id, None)) is not None:
            task.cancel()
            await asyncio.wait({task})
        if self._copied.pop(run.job_id, 0) or task is not None:  # what was on its way may have arrived
            ended = run.workdir / f"{NAME}.ended"
            try:
                ended.write_bytes(_ENDED)
            except OSError as error:
                log.warning("checkpoint cannot be removed from the store", job=run.job_id, error=str(error))
                return
            await self._publish(run, ended, problem="checkpoint cannot be removed from the store", seconds=_ENDED_SECONDS)

    async def settle(self, run: Run, *, seconds: float = _HAND_BACK_SECONDS) -> None:
        """End what a run does in the store. A copy that is on its way may arrive first: the next attempt may be elsewhere."""
        if (task := self._copies.pop(run.job_id, None)) is not None:
            await asyncio.wait({task}, timeout=seconds)
            task.cancel()
        self._copied.pop(run.job_id, None)

    def _path(self, run: Run) -> Path:
        return self._settings.checkpoints_path / f"{run.job_id}.safetensors"

    def _told(self, run: Run, what: str, step: int, reason: str) -> None:
        told = {"job": run.job_id, "attempt": run.attempt, "step": step}
        if what == "saved":
            log.debug("checkpoint saved", **told)
            if self._settings.checkpoint_store and run.job_id not in self._copies:
                self._copies[run.job_id] = asyncio.create_task(self._copy(run))
        elif what == "resumed":
            log.info("job goes on from a checkpoint", **told)
        else:
            log.warning("checkpoint ignored" if what == "ignored" else "checkpoint not saved", **told, reason=reason)

    async def _copy(self, run: Run) -> None:
        """Copy the newest checkpoint to the store until it has that one."""
        path, frozen = self._path(run), run.workdir / NAME
        problem = "checkpoint cannot be copied to the store"
        try:
            while (step := step_of(path)) > self._copied.get(run.job_id, 0):
                await asyncio.to_thread(_freeze, path, frozen)
                if not await self._publish(run, frozen, problem=problem, seconds=self._settings.publish_timeout):
                    break
                self._copied[run.job_id] = step
        except OSError as error:  # it is gone by now, or the disk is full
            log.warning(problem, job=run.job_id, error=str(error))
        finally:
            if self._copies.get(run.job_id) is asyncio.current_task():
                del self._copies[run.job_id]

    async def _publish(self, run: Run, path: Path, *, problem: str, seconds: float) -> bool:
        file = OutputFile(
            job_id=run.job_id,
            user_id=run.user_id,
            asset_index=0,
            role="checkpoint",
            path=path,
            key=f"{run.user_id}/{run.job_id}/{NAME}",
            content_type="application/octet-stream",
            file_size_bytes=path.stat().st_size,  # noqa: ASYNC240  # of a file that was just written
        )
        context = StageContext(  # its own: that of a cancelled run would stop the publisher
            job_id=run.job_id, user_id=run.user_id, workdir=run.workdir, deadline=time.monotonic() + seconds
        )
        try:
            async with asyncio.timeout(seconds):
                published = await self._threads.run(
                    "checkpoint", lambda: self._hooks.publish(self._settings.publisher, file, context)
                )
            if published.url != self._uri(run):
                raise PublishRefused(f"it was put at {published.url}, where no other worker looks: that is {self._uri(run)}")
        except Exception as error:  # noqa: BLE001  # whatever a store does, the job goes on
            log.warning(problem, job=run.job_id, error=f"{type(error).__name__}: {error}")
            return False
        finally:
            context.cancel()
        return True

    async def _fetch(self, run: Run) -> None:
        """Bring the store's checkpoint here if it is further than the one that is here."""
        path, context = self._path(run), run.context(self._settings.reference_timeout)
        fetched = run.workdir / f"{NAME}.fetched"
        try:
            async with asyncio.timeout(self._settings.reference_timeout):
                data = await self._threads.run("checkpoint", lambda: self._hooks.fetch_reference(self._uri(run), context))
            if data is None or data == _ENDED:
                return
            await asyncio.to_thread(fetched.write_bytes, data)
            if (step := step_of(fetched)) > step_of(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(path)
                self._copied[run.job_id] = step
                log.info("checkpoint fetched from the store", job=run.job_id, step=step)
        except JobCancelled:
            raise
        except (WanHostError, OSError, TimeoutError) as error:
            log.info("no checkpoint in the store", job=run.job_id, reason=f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  # a plugin's fault costs time, not the job
            log.warning("checkpoint cannot be fetched", job=run.job_id, error=f"{type(error).__name__}: {error}")
        finally:
            context.cancel()
            with contextlib.suppress(OSError):
                fetched.unlink(missing_ok=True)

    def _uri(self, run: Run) -> str:
        return f"{self._settings.bucket}/{run.user_id}/{run.job_id}/{NAME}"


def _freeze(path: Path, frozen: Path) -> None:
    """Give a checkpoint a second name that nobody replaces while it is copied."""
    frozen.unlink(missing_ok=True)
    os.link(path, frozen)
