"""The routes of models: which lane holds which, and loading and unloading them by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from wan_host.errors import UnknownModel
from wan_host.lanes.supervisor import Lane
from wan_host.server.access import TheWorker
from wan_host.server.answers import LaneMemory, MemoryAnswer, MemoryChange, ModelMemory
from wan_host.server.problems import Problem, documented
from wan_host.worker import Worker

__all__ = ["router"]

_PATIENCE_SECONDS = 20.0
"""A proxy gives up on longer answers; the work goes on."""
router = APIRouter(prefix="/memory", tags=["models"])
log = structlog.get_logger("wan_host.http")
_tasks: set[asyncio.Task[None]] = set()


class ModelRequest(BaseModel):
    """Which model, and in which lane; in every lane that can hold it where none is named."""

    model: str = Field(min_length=1, max_length=200)
    lane: str | None = Field(default=None, max_length=200)


@router.get("/status")
async def status(worker: TheWorker) -> MemoryAnswer:
    """Tell which lane holds which models, and what the devices' memory is used for."""
    states = worker.pool.states()
    models = [
        ModelMemory(
            name=model.name,
            family=model.family,
            kind=model.kind,
            runner=model.runner,
            vram_bytes=model.vram_mib << 20,
            loaded_in=[state.name for state in states if model.name in state.loaded],
        )
        for model in worker.hooks.models().values()
    ]
    lanes = [
        LaneMemory(
            name=state.name,
            kind=state.kind,
            device=state.device,
            status=state.status,
            loaded=list(state.loaded),
            used=state.memory.used,
            reserved=state.memory.reserved,
            peak=state.memory.peak,
            total=state.memory.total,
        )
        for state in states
    ]
    return MemoryAnswer(models=models, lanes=lanes)


@router.post("/load", responses=documented(400, 413, 422, 503) | {202: {"model": MemoryChange}})
async def load(request: ModelRequest, worker: TheWorker, response: Response) -> MemoryChange:
    """Load a model: 200 when it is there, 202 when that takes longer. A lane that works loads it afterwards.

    Models that rested longest are unloaded where the device has no room, as for a job.
    """

    async def load_into(lane: Lane) -> None:
        async with worker.pool.vram.room_for(lane, request.model):
            await lane.load(request.model)

    return await _change(request, worker, response, load_into)


@router.post("/unload", responses=documented(400, 413, 422, 503) | {202: {"model": MemoryChange}})
async def unload(request: ModelRequest, worker: TheWorker, response: Response) -> MemoryChange:
    """Unload a model: 200 when it is gone, 202 when that takes longer. A lane that works with it unloads it afterwards."""
    return await _change(request, worker, response, lambda lane: lane.unload(request.model))


async def _change(
    request: ModelRequest, worker: Worker, response: Response, do: Callable[[Lane], Coroutine[Any, Any, None]]
) -> MemoryChange:
    if worker.queue is None:
        raise Problem(503, "lanes: not started yet", headers={"Retry-After": "2"})
    lanes = _lanes(request, worker)
    task = asyncio.ensure_future(_all(lanes, do))
    _tasks.add(task)
    task.add_done_callback(_ended)
    done, _ = await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
    if done:
        task.result()
    else:
        response.status_code = 202
    return MemoryChange(model=request.model, lanes=[lane.name for lane in lanes], done=bool(done))


def _lanes(request: ModelRequest, worker: Worker) -> list[Lane]:
    model = worker.hooks.models().get(request.model)
    if model is None:
        names = ", ".join(sorted(worker.hooks.models())) or "none"
        raise UnknownModel(f"model: {request.model!r} is offered by no installed plugin; there are {names}")
    able = worker.pool.lanes_for(model)
    lanes = [lane for lane in able if request.lane in {None, lane.name}]
    if not lanes:
        names = ", ".join(lane.name for lane in able) or "none"
        raise Problem(422, f"lane: {request.lane!r} is none that can hold model {request.model}; there are {names}")
    return lanes


async def _all(lanes: list[Lane], do: Callable[[Lane], Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*(do(lane) for lane in lanes))


def _ended(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("model could not be loaded or unloaded", error=str(error))
