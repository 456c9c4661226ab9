"""From what the queue and the worker know to what the routes answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from wan_host.queue import JobState, WorkerState
from wan_host.run import Run
from wan_host.server.answers import ENDED, AssetAnswer, FullJobAnswer, JobAnswer, JobStatus, Progress, WorkerAnswer
from wan_host.server.waits import Wait

_SHOWN_URI_CHARACTERS = 60
_DATA_URI_CHARACTERS = 200
_LEVELS = 32
"""Of a payload: a stranger may nest it deeper than an answer can be."""


def job_answer(state: JobState, run: Run | None = None) -> JobAnswer:
    """Describe a job; ``run`` is the one that this worker makes of it, and knows it better than the queue."""
    return JobAnswer(**_fields(state, run))


def full_job_answer(state: JobState, run: Run | None = None, wait: Wait | None = None) -> FullJobAnswer:
    """Describe a job with its payload, and how long it waits."""
    result = state.result or {}
    return FullJobAnswer(
        **_fields(state, run),
        queue_position=wait.position if wait is not None else None,
        seconds_until_start=wait.seconds if wait is not None else None,
        payload=_shortened(_object(state.payload)),
        metadata=dict(_mapping(result.get("metadata"))),
    )


def worker_answer(state: WorkerState) -> WorkerAnswer:
    """Describe a worker of the fleet."""
    return WorkerAnswer(
        id=state.worker_id,
        since=state.since,
        seen=state.seen,
        alive=state.alive,
        about=dict(state.about),
        jobs=dict(state.jobs),
    )


def progress_of(state: JobState) -> Progress:
    """Read what a worker told the queue of its run, as long as there is one."""
    told = {} if state.status in ENDED else state.progress
    step, total = told.get("step"), told.get("total")
    return Progress(
        stage=str(told.get("stage") or ""),
        step=step if isinstance(step, int) else 0,
        total=total if isinstance(total, int) else 0,
    )


def owner_of(state: JobState) -> str:
    """Return the user id of a job, empty where its payload has none."""
    return _text(_object(state.payload).get("user_id"))


def _fields(state: JobState, run: Run | None) -> dict[str, Any]:
    payload = _object(state.payload)
    if run is not None and run.job is not None:
        model: object = run.job.model.name
    else:
        model = _mapping((state.result or {}).get("metadata")).get("model") or _mapping(payload.get("config")).get("model")
    told = progress_of(state)
    left = state.progress.get("seconds_left")
    if run is not None:
        told = Progress(stage=run.stage, step=run.step, total=run.total)
        left = run.time_left()
    return {
        "id": state.job_id,
        "status": cast("JobStatus", state.status),
        "type": _text(payload.get("type")),
        "user_id": _text(payload.get("user_id")),
        "model": _text(model) or None,
        "prompt": _text(payload.get("prompt")),
        "priority": state.priority,
        "seed": state.seed,
        "attempts": state.attempts,
        "cancelling": state.cancelling,
        "worker": state.worker,
        "queued_at": state.queued_at,
        "started_at": state.started_at,
        "finished_at": state.finished_at,
        "progress": told,
        "seconds_left": round(left, 1) if isinstance(left, int | float) and state.status == "running" else None,
        "error": dict(state.error) if state.error else None,
        "assets": [_asset(item) for item in (state.result or {}).get("assets") or ()],
        "report_state": state.report_state,
        "report_error": state.report_error,
    }


def _asset(asset: Mapping[str, Any]) -> AssetAnswer:
    url, thumbnail = str(asset.get("url") or ""), asset.get("thumbnail_url")
    return AssetAnswer(
        type=str(asset.get("type") or ""),
        url=url,
        thumbnail_url=thumbnail,
        name=url.rsplit("/", 1)[-1],
        thumbnail=str(thumbnail).rsplit("/", 1)[-1] if thumbnail else None,
        derived={role: str(place).rsplit("/", 1)[-1] for role, place in _mapping(asset.get("derived")).items()},
        metadata=dict(_mapping(asset.get("metadata"))),
    )


def _object(text: str) -> Mapping[str, Any]:
    """Return the object in a payload, which a stranger wrote; empty where there is none."""
    try:
        return _mapping(json.loads(text, parse_constant=str))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _shortened(value: Any, levels: int = _LEVELS) -> Any:
    """Cut ``data:`` URIs and deep levels, which nobody reads, out of a payload; texts become what UTF-8 can hold."""
    if isinstance(value, dict | list) and not levels:
        return "..."
    if isinstance(value, dict):
        return {_text(key): _shortened(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item, levels - 1) for item in value]
    if isinstance(value, str):
        if value.startswith("data:") and len(value) > _DATA_URI_CHARACTERS:
            return f"{value[:_SHOWN_URI_CHARACTERS]}... ({len(value)} characters)"
        return _text(value)
    return value
