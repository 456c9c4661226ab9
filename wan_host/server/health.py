"""The routes that watch: liveness, readiness, metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter, Response

from wan_host import __version__
from wan_host.metrics import CONTENT_TYPE
from wan_host.server.access import TheWorker
from wan_host.server.answers import Health, LaneHealth, PluginHealth, Readiness
from wan_host.worker import Worker

__all__ = ["metrics_router", "router"]

_SEED_FAMILIES = ("wan", "qwen")
router = APIRouter(tags=["watching"])
metrics_router = APIRouter(tags=["watching"])


@router.get("/health")
async def health(worker: TheWorker) -> Health:
    """Answer while the process lives, with what is going on."""
    return _health(worker)


@router.get("/ready", responses={503: {"description": "Jobs cannot be taken", "model": Readiness}})
async def ready(worker: TheWorker, response: Response) -> Readiness:
    """Answer 200 while jobs can be taken, else 503 with the reasons."""
    problems = worker.problems()
    response.status_code = 503 if problems else 200
    return Readiness(ready=not problems, problems=problems)


@metrics_router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(worker: TheWorker) -> Response:
    """Answer in the Prometheus text format."""
    worker.refresh_metrics()
    return Response(worker.metrics.render(), media_type=CONTENT_TYPE)


def _health(worker: Worker) -> Health:
    """Build the answer: ``{family}_model_loaded`` is true while some lane holds a model of that family."""
    registry = worker.hooks.registry
    states = worker.pool.states()
    models = registry.models
    problems = worker.problems()
    families = dict.fromkeys((*_SEED_FAMILIES, *(model.family for model in models.values())), False)
    families |= {models[name].family: True for state in states for name in state.loaded if name in models}
    return Health.model_validate(
        {f"{family}_model_loaded": present for family, present in families.items()}
        | {
            "device": worker.devices[0].name,
            "version": __version__,
            "worker_id": worker.settings.worker_id,
            "uptime": round(time.time() - worker.started_at, 1),
            "ready": not problems,
            "problems": problems,
            "key_required": worker.settings.wan_worker_api_key is not None,
            "lanes": [
                LaneHealth(
                    name=state.name,
                    device=state.device,
                    status=state.status,
                    loaded=list(state.loaded),
                    job_id=state.job_id,
                    stage=state.stage,
                    step=state.step,
                    total=state.total,
                    failure=state.failure,
                )
                for state in states
            ],
            "plugins": [
                PluginHealth(
                    name=record.name,
                    distribution=record.distribution,
                    version=record.version,
                    status=record.status,
                    error=record.error,
                )
                for record in registry.records
            ],
        }
    )
