"""The routes: liveness, readiness and metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from wan_host import __version__
from wan_host.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from wan_host.worker import Worker

SERVICE_UNAVAILABLE = 503
_SEED_FAMILIES = ("wan", "qwen")


def create_app(worker: Worker) -> FastAPI:
    """Return the application that serves one worker."""
    app = FastAPI(title="wan-host", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Answer while the process lives, with the seed's fields and what is going on."""
        return health_report(worker)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Answer 200 when jobs can be taken, else 503 with the reasons."""
        problems = worker.problems()
        status = SERVICE_UNAVAILABLE if problems else 200
        return JSONResponse({"ready": not problems, "problems": problems}, status_code=status)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Answer in the Prometheus text format."""
        worker.refresh_metrics()
        return Response(worker.metrics.render(), media_type=CONTENT_TYPE)

    return app


def health_report(worker: Worker) -> dict[str, Any]:
    """Return the body of ``/health``: ``{family}_model_loaded`` is true while some lane holds a model of that family."""
    registry = worker.hooks.registry
    states = worker.pool.states()
    loaded = {name for state in states for name in state.loaded}
    families = dict.fromkeys((*_SEED_FAMILIES, *(model.family for model in registry.models.values())), False)
    for name in loaded:
        families[registry.models[name].family] = True
    return {
        "status": "healthy",
        **{f"{family}_model_loaded": present for family, present in families.items()},
        "device": worker.devices[0].name,
        "version": __version__,
        "worker_id": worker.settings.worker_id,
        "uptime": round(time.time() - worker.started_at, 1),
        "ready": not worker.problems(),
        "lanes": [
            {
                "name": state.name,
                "device": state.device,
                "status": state.status,
                "loaded": list(state.loaded),
                "job_id": state.job_id,
                "stage": state.stage,
                "step": state.step,
                "total": state.total,
                "failure": state.failure,
            }
            for state in states
        ],
        "plugins": [
            {
                "name": record.name,
                "distribution": record.distribution,
                "version": record.version,
                "status": record.status,
                "error": record.error,
            }
            for record in registry.records
        ],
    }
