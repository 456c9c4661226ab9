"""The route that shows how a worker is set up. Of secrets it says whether they are set, and nothing of what they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import SecretStr

from wan_host.server.access import TheWorker
from wan_host.server.answers import DebugAnswer
from wan_host.settings import Settings
from wan_host.worker import Worker

__all__ = ["router"]

_ADDRESSES = frozenset({"queue_url", "callback_url", "upstash_redis_rest_url"})
"""Addresses that may hold a password or a token."""
_OTHERS = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY", "HF_TOKEN")
"""Variables of the seed that plugins read."""
router = APIRouter(tags=["watching"])


@router.get("/debug/env")
async def debug_env(worker: TheWorker) -> DebugAnswer:
    """Show the effective settings, where the models are, and the seed's fields."""
    models = worker.hooks.models().values()
    runner = next((model.runner for model in models if model.family == "wan" and model.kind == "generate"), None)
    families: dict[str, str] = {}
    for model in models:
        families.setdefault(model.family, model.path)
    return DebugAnswer(
        wan_generate_path=_path_of(runner, worker) if runner is not None else None,
        model_paths=families,
        models={model.name: model.path for model in models},
        settings=shown_settings(worker.settings),
        environment={name: "set" if os.environ.get(name) else "not set" for name in _OTHERS},
    )


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings by name, as JSON; secrets as ``set`` or ``not set``."""
    shown: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name in _ADDRESSES or isinstance(value, SecretStr) or name in _SECRETS:
            shown[name] = "not set" if value is None else "set"
        else:
            shown[name] = str(value) if isinstance(value, Path) else value
    return shown


_SECRETS = frozenset(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))


def _path_of(plugin: str, worker: Worker) -> str | None:
    module = worker.hooks.registry.manager.get_plugin(plugin)
    return getattr(module, "__file__", None)
