"""What hooks are given, made for tests: small requests that a model can do, real encoded files, reports."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from wan_host.context import StageContext
from wan_host.encoding import encode_asset
from wan_host.job import JobPolicy, resolve_job
from wan_host.media import Media, OutputFile
from wan_host.model import MediaKind, ModelInfo, SizeBounds
from wan_host.payload import parse_payload
from wan_host.report import Report, ReportStatus
from wan_host.request import GenerationRequest
from wan_host.testing.instant import draw

_SMALLEST_SIDE, _FRAMES, _STEPS, _FPS = 64, 5, 3, 8
_TYPES = {"mp4": "video/mp4", "png": "image/png"}


def is_there(model: ModelInfo) -> bool:
    """Tell whether a model's folder is on this disk; what is no folder (a hub id, nothing at all) counts as there."""
    return not model.path.startswith("/") or Path(model.path).exists()


def sample_payload(model: ModelInfo, job_id: str = "job", *, media: MediaKind = "video", **changes: Any) -> dict[str, Any]:
    """Return the smallest payload of a kind that a model serves; ``changes`` go into its config. Raises LookupError for none."""
    job_type = next(name for name, defaults in _types(model).items() if defaults.media == media and not defaults.enhance)
    side = _side(model.bounds)
    config = {"model": model.name, "width": side, "height": side, "num_inference_steps": _STEPS, "seed": 7}
    if media == "video":
        config |= {"frames": min(_FRAMES, model.bounds.max_frames), "fps": _FPS}
    prompt = "a red circle moves to the right on a black background"
    return {"id": job_id, "type": job_type, "prompt": prompt, "user_id": "user", "config": config | changes}


def sample_request(model: ModelInfo, *, media: MediaKind = "video", **changes: Any) -> GenerationRequest:
    """Return the same as a request, resolved and checked as the host does."""
    payload = parse_payload(json.dumps(sample_payload(model, media=media, **changes)))
    return resolve_job(payload, models={model.name: model}, policy=JobPolicy(), seed=7).request


def sample_context(workdir: Path, *, user_id: str = "user", seconds: float = 60) -> StageContext:
    """Return what hooks of the host process are given; ``cancel()`` makes its next check raise."""
    return StageContext(job_id="job", user_id=user_id, workdir=workdir, deadline=time.monotonic() + seconds)


def sample_media(workdir: Path, *, kind: MediaKind = "video", width: int = 96, height: int = 64, frames: int = 9) -> Media:
    """Return an asset that the host has encoded, with its frames."""
    clip = draw(width, height, frames if kind == "video" else 1, seed=7)
    return encode_asset(clip, asset_index=0, kind=kind, fps=_FPS, workdir=workdir, context=sample_context(workdir))


def sample_file(folder: Path, data: bytes, *, name: str = "0.mp4", user_id: str = "user", job_id: str = "job") -> OutputFile:
    """Return a file of these bytes as a publisher gets it."""
    path = folder / f"{user_id}-{job_id}-{name}"
    path.write_bytes(data)
    return OutputFile(
        job_id=job_id,
        user_id=user_id,
        asset_index=0,
        role="asset",
        path=path,
        key=f"{user_id}/{job_id}/{name}",
        content_type=_TYPES.get(name.rpartition(".")[2], "application/octet-stream"),
        file_size_bytes=len(data),
    )


def sample_report(job_id: str = "job", *, status: ReportStatus = "completed", sequence: int = 2, attempt: int = 1) -> Report:
    """Return a report with the fields of the wire contract that receivers look at."""
    payload = {
        "job_id": job_id,
        "worker_id": "worker",
        "status": status,
        "sequence": sequence,
        "timestamp": time.time(),
        "assets": [],
        "metadata": {"attempt": attempt, "model": "instant"},
        **({"error_message": "the prompt asked for an error"} if status == "failed" else {}),
    }
    return Report(job_id=job_id, attempt=attempt, status=status, sequence=sequence, payload=payload)


def _types(model: ModelInfo) -> dict[str, Any]:
    return dict(model.job_types)


def _side(bounds: SizeBounds) -> int:
    """Return the smallest side that a model allows and any network can do something with."""
    least = max(bounds.min_side, min(_SMALLEST_SIDE, bounds.max_side))
    return -(-least // bounds.multiple) * bounds.multiple
