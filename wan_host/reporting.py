"""Writing reports: the JSON of the wire contract, from what was asked, what was done and what was measured.

What only later stages know (``sequence``, the assets' urls) is filled in by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from wan_host.errors import WanHostError
from wan_host.job import Job
from wan_host.media import Media
from wan_host.model import ReferenceMode
from wan_host.run import Run

_TEXT_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run measured on its way, for the report's metadata. ``vram_mib`` is the job's peak, 0 on a CPU."""

    enhancement_source: str = "none"
    enhanced_prompt: str | None = None
    enhancement_note: str = ""
    vram_mib: int = 0
    generated: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def timestamp() -> str:
    """Return the time of now as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def processing_report(run: Run, worker_id: str) -> dict[str, Any]:
    """Say that work has started."""
    return _report(run, worker_id, "processing", metadata=_job_metadata(run.job))


def completed_report(run: Run, worker_id: str, media: Sequence[Media], outcome: Outcome) -> dict[str, Any]:
    """Say what was made; ``url`` and ``thumbnail_url`` of the assets are still to come."""
    job = _resolved(run)
    metadata = _job_metadata(job) | {
        "enhancement_source": outcome.enhancement_source,
        "vram_used": outcome.vram_mib,
        "frame_num": media[0].frames,
        "stage_seconds": {stage: _seconds(value) for stage, value in run.seconds.items()},
    }
    if outcome.enhanced_prompt is not None:
        metadata["enhanced_prompt"] = outcome.enhanced_prompt.encode("utf-8", "replace").decode()
    if outcome.enhancement_note:
        metadata["enhancement_note"] = _text(outcome.enhancement_note)
    metadata |= {key: value for key, value in _scalars(outcome.generated).items() if key not in metadata}
    report = _report(run, worker_id, "completed", metadata=metadata)
    report["assets"] = [_asset(job, item, outcome) for item in media]
    return report


def failed_report(run: Run, worker_id: str, error: WanHostError) -> dict[str, Any]:
    """Say why nothing was made."""
    report = _report(run, worker_id, "failed", metadata=_job_metadata(run.job) | {"error_type": error.error_type})
    report["error_message"] = _text(str(error))
    return report


def with_urls(report: Mapping[str, Any], urls: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    """Return a completed report with the places of its files; ``urls`` maps (asset index, role) to the published url."""
    assets = []
    for asset in report["assets"]:
        index = asset["metadata"]["asset_index"]
        placed = {"type": asset["type"], "url": urls[index, "asset"]}
        if (index, "thumbnail") in urls:
            placed["thumbnail_url"] = urls[index, "thumbnail"]
        others = {role: url for (number, role), url in urls.items() if number == index and role not in {"asset", "thumbnail"}}
        if others:
            placed["derived"] = others
        assets.append(placed | {"metadata": asset["metadata"]})
    return {**report, "assets": assets}


def _report(run: Run, worker_id: str, status: str, *, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job_id": run.job_id,
        "worker_id": worker_id,
        "status": status,
        "timestamp": timestamp(),
        "assets": [],
        "metadata": {
            **metadata,
            "attempt": run.attempt,
            "queue_time": _seconds(run.queue_time),
            "processing_time": _seconds(run.elapsed()),
        },
    }


def _job_metadata(job: Job | None) -> dict[str, Any]:
    if job is None:
        return {"enhancement_source": "none", "reference_mode": "none", "vram_used": 0, "auto_enhancement": False}
    request = job.request
    metadata: dict[str, Any] = {
        "enhancement_source": "none",
        "reference_mode": request.reference_mode.value,
        "reference_mode_source": job.reference_mode_source,
        "vram_used": 0,
        "auto_enhancement": job.enhance,
        "model": job.model.name,
        "job_type": job.type,
        "seed": request.seed,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "sample_solver": request.sample_solver,
        "sample_shift": request.sample_shift,
        "preset": request.preset,
        "frame_num": request.published_frames,
    }
    if request.postprocess:
        metadata["postprocess"] = [step.plugin for step in request.postprocess]
    if job.denoise_strength is not None:
        metadata["denoise_strength"] = job.denoise_strength
        metadata["denoise_applied"] = request.denoise_strength is not None
    if job.model.random_weights:
        metadata["random_weights"] = True
    return metadata


def _asset(job: Job, media: Media, outcome: Outcome) -> dict[str, Any]:
    request = job.request
    metadata: dict[str, Any] = {
        "width": media.width,
        "height": media.height,
        "frames": media.frames,
        "fps": media.fps,
        "duration": round(media.duration, 3),
        "format": media.format,
        "file_size_bytes": media.file_size_bytes,
        "asset_index": media.asset_index,
        "seed": media.seed,
        "steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "pipeline": _pipeline(job),
        "resize_policy": "center_crop",
        # A model that had no use for it (no guidance, a distilled adapter) says so itself.
        "negative_prompt_used": bool(request.negative_prompt) and bool(outcome.generated.get("negative_prompt_applied", True)),
    }
    if job.denoise_strength is not None:
        metadata["denoise_strength"] = job.denoise_strength
    return {"type": media.kind, "metadata": metadata}


def _pipeline(job: Job) -> str:
    """Name what was done in the seed's terms: ``img2img`` wherever a reference took part."""
    if job.request.reference_mode is not ReferenceMode.NONE or job.subjects:
        return "img2img"
    return "txt2img" if job.request.media == "image" else "txt2vid"


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a plugin's remarks what JSON can hold: texts, truth values, finite numbers."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, str):
            kept[str(key)] = _text(plain)
        elif isinstance(plain, int) or (isinstance(plain, float) and math.isfinite(plain)):
            kept[str(key)] = plain
    return kept


def _text(text: str) -> str:
    """Cut a text of a stranger's to what a person reads, without half surrogate pairs, which no UTF-8 can hold."""
    return text[:_TEXT_CHARACTERS].encode("utf-8", "replace").decode()


def _resolved(run: Run) -> Job:
    if run.job is None:
        raise ValueError(f"run of {run.job_id} has no resolved job")
    return run.job


def _seconds(value: float) -> float:
    return round(value, 3) if math.isfinite(value) else 0.0
