"""The route that enhances a prompt, in the enhance lane: also while a video is being generated."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from wan_host.errors import InvalidJob
from wan_host.lane_pool import NO_ENHANCER
from wan_host.model import MediaKind
from wan_host.request import EnhanceRequest
from wan_host.server.access import TheWorker, limit_enhancements
from wan_host.server.answers import EnhanceAnswer
from wan_host.server.problems import Problem, documented

__all__ = ["router"]

_MOST_WAITING = 16
router = APIRouter(tags=["prompts"])


class EnhanceConfig(BaseModel):
    """What the prompt is for: ``wan_`` before a job type does not matter, and neither does ``7b`` with ``_enhanced``."""

    job_type: str = Field(
        default="video_fast", pattern=r"^(wan_)?(image|video)(_fast|_high|7b_fast_enhanced|7b_high_enhanced)$", max_length=100
    )


class EnhanceBody(BaseModel):
    """The seed's request."""

    prompt: str = Field(min_length=1)
    config: EnhanceConfig = EnhanceConfig()


@router.post("/enhance", dependencies=[Depends(limit_enhancements)], responses=documented(400, 413, 422, 429, 503, 504))
async def enhance(body: EnhanceBody, worker: TheWorker) -> EnhanceAnswer:
    """Rewrite a prompt. ``enhancement_applied`` is false where the result was no good and the original stands."""
    settings, pool = worker.settings, worker.pool
    if len(body.prompt) > settings.max_prompt_characters:
        allowed = f"at most {settings.max_prompt_characters} (WAN_HOST_MAX_PROMPT_CHARACTERS)"
        raise InvalidJob("prompt", f"{len(body.prompt)} characters", allowed)
    if pool.enhancer is None or worker.queue is None:
        reason = "not started yet" if pool.enhancer is not None else NO_ENHANCER
        raise Problem(503, f"enhancement: {reason}", error_type="unsupported")
    waiting = next(state.waiting for state in pool.states() if state.kind == "enhance")
    if waiting >= _MOST_WAITING:
        raise Problem(503, f"enhancement: {waiting} prompts wait already", headers={"Retry-After": "10"})
    job_type = body.config.job_type.removeprefix("wan_")
    media: MediaKind = "image" if job_type.startswith("image") else "video"
    started = time.monotonic()
    result = await pool.enhance_prompt(
        EnhanceRequest(prompt=body.prompt, job_type=job_type, media=media), deadline=started + settings.stage_timeout
    )
    found = result.enhancement
    return EnhanceAnswer(
        success=True,
        enhanced_prompt=found.prompt.encode("utf-8", "replace").decode(),
        original_prompt=body.prompt.encode("utf-8", "replace").decode(),
        enhancement_source=found.source,
        enhancement_applied=found.source != "none",
        enhancement_note=found.reason,
        processing_time=round(time.monotonic() - started, 3),
        model=pool.enhancer.model.name,
    )
