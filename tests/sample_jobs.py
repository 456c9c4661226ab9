"""Payloads, a model that serves them, and what becomes of both."""

import json
from dataclasses import replace

from wan_host import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, wan_job_types
from wan_host.job import JobPolicy, resolve_job
from wan_host.payload import parse_payload

DEFAULTS = JobDefaults(media="video")
WAN = ModelInfo(
    name="wan-1.3b",
    family="wan",
    runner="wan21",
    job_types=wan_job_types(DEFAULTS, DEFAULTS, fast_steps=25, high_steps=50, fast_guidance=6.5, high_guidance=7.5),
    reference_modes=frozenset(ReferenceMode),
    image_to_image=True,
    max_subject_references=4,
    loras=True,
    presets=("exact", "fast"),
)
TEXT_ONLY = replace(
    WAN,
    name="text-only",
    reference_modes=frozenset({ReferenceMode.NONE}),
    image_to_image=False,
    max_subject_references=0,
    loras=False,
    solvers=frozenset({"unipc"}),
    presets=(),
    advice="the large one can",
    bounds=SizeBounds(min_side=64, max_side=256, max_pixels=128 * 256, max_frames=17, multiple=32),
)
ENHANCER = ModelInfo(name="qwen", family="qwen", runner="qwen_enhance", kind="enhance")
MODELS = {model.name: model for model in (WAN, TEXT_ONLY, ENHANCER)}
POLICY = JobPolicy(default_model="wan-1.3b")
DRAWN_SEED = 4242


def payload(config=None, metadata=None, **fields):
    """A complete payload with the given fields over it."""
    base = {"id": "job-1", "type": "video_fast", "prompt": "a red circle", "user_id": "user-1"}
    return base | {"config": config or {}, "metadata": metadata or {}} | fields


def resolve(config=None, metadata=None, *, policy=POLICY, models=MODELS, **fields):
    """The job that a worker makes of a payload."""
    text = json.dumps(payload(config, metadata, **fields))
    return resolve_job(parse_payload(text), models=models, policy=policy, seed=DRAWN_SEED)
