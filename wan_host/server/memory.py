"""The routes of models: which lane holds which, and loading and unloading them by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
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
_MOST_CHANGES = 16
"""That work or wait for their lanes at once."""
router = APIRouter(prefix="/memory", tags=["models"])
log = structlog.get_logger("wan_host.http")


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
async def load(wanted: ModelRequest, worker: TheWorker, request: Request, response: Response) -> MemoryChange:
    """Load a model: 200 when it is there, 202 when that takes longer. A lane that works loads it afterwards.

    Models that rested longest are unloaded where the device has no room, as for a job.
    """

    async def load_into(lane: Lane) -> None:
        async with worker.pool.vram.room_for(lane, wanted.model):
            await lane.load(wanted.model)

    return await _change(wanted, worker, request, response, load_into)


@router.post("/unload", responses=documented(400, 413, 422, 503) | {202: {"model": MemoryChange}})
async def unload(wanted: ModelRequest, worker: TheWorker, request: Request, response: Response) -> MemoryChange:
    """Unload a model: 200 when it is gone, 202 when that takes longer. A lane that works with it unloads it afterwards."""
    return await _change(wanted, worker, request, response, lambda lane: lane.unload(wanted.model))


async def _change(
    wanted: ModelRequest, worker: Worker, request: Request, response: Response, do: Callable[[Lane], Coroutine[Any, Any, None]]
) -> MemoryChange:
    if worker.queue is None:
        raise Problem(503, "lanes: not started yet", headers={"Retry-After": "2"})
    lanes = _lanes(wanted, worker)
    changes: set[asyncio.Task[None]] = request.app.state.changes
    if len(changes) >= _MOST_CHANGES:
        raise Problem(503, f"{_MOST_CHANGES} loads and unloads wait for their lanes already", headers={"Retry-After": "10"})
    task = asyncio.ensure_future(_all(lanes, do))
    changes.add(task)
    task.add_done_callback(changes.discard)
    task.add_done_callback(_ended)
    done, _ = await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
    if done:
        task.result()
    else:
        response.status_code = 202
    return MemoryChange(model=wanted.model, lanes=[lane.name for lane in lanes], done=bool(done))


def _lanes(wanted: ModelRequest, worker: Worker) -> list[Lane]:
    model = worker.hooks.models().get(wanted.model)
    if model is None:
        names = ", ".join(sorted(worker.hooks.models())) or "none"
        raise UnknownModel(f"model: {wanted.model!r} is offered by no installed plugin; there are {names}")
    able = worker.pool.lanes_for(model)
    lanes = [lane for lane in able if wanted.lane in {None, lane.name}]
    if not lanes:
        names = ", ".join(lane.name for lane in able) or "none"
        raise Problem(422, f"lane: {wanted.lane!r} is none that can hold model {wanted.model}; there are {names}")
    return lanes


async def _all(lanes: list[Lane], do: Callable[[Lane], Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*(do(lane) for lane in lanes))


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("model could not be loaded or unloaded", error=str(error))
