"""The HTTP application of one worker: the routes, and what stands around them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from wan_host import __version__
from wan_host.payload import Payload
from wan_host.server import assets, debug, enhance, events, health, jobs, memory, models, page, problems
from wan_host.server.access import RateLimit, require_key
from wan_host.server.guard import Guard
from wan_host.server.watch import Watch
from wan_host.worker import Worker

_KEYED = (jobs.router, assets.router, events.router, enhance.router, memory.router, models.router, debug.router)
_CORS_METHODS = ("GET", "POST", "DELETE")


def create_app(worker: Worker, watch: Watch) -> ASGIApp:
    """Return the application that serves one worker; ``watch`` is for its event streams."""
    settings = worker.settings
    app = FastAPI(title="wan-host", version=__version__, docs_url=None, redoc_url=None, separate_input_output_schemas=False)
    app.state.worker = worker
    app.state.watch = watch
    app.state.submissions = RateLimit(settings.submit_rate)
    app.state.enhancements = RateLimit(settings.enhance_rate)
    app.state.reading = asyncio.Lock()
    app.state.changes = set()
    problems.install(app)
    keyed: dict[str, Any] = {"dependencies": [Depends(require_key)], "responses": problems.documented(401, 403)}
    app.include_router(page.router)
    app.include_router(health.router)
    app.include_router(health.metrics_router, **(keyed if settings.metrics_key else {}))
    for router in _KEYED:
        app.include_router(router, **keyed)
    _complete_openapi(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=_CORS_METHODS,
            allow_headers=["Authorization", "Content-Type", "Range"],
        )
    return Guard(app, max_body_bytes=settings.max_body_bytes)


def _complete_openapi(app: FastAPI) -> None:
    """Add to OpenAPI's schemas those that routes name and FastAPI does not see: problems, and payloads as producers push them."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = generate()["components"]["schemas"]
            for model in (problems.ProblemDetails, Payload):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way of changing the document
