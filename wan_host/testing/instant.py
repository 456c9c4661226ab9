"""A model that costs nothing: drawn frames at once, and faults on demand. A plugin for tests and benchmarks.

``install`` makes it discoverable in a folder that is put on ``PYTHONPATH``, for the host and for its lanes alike. Words in the
prompt steer it: ``pace:0.2`` sleeps that many seconds a step; ``crash:2`` kills the lane at step 2 of the first attempt and
``crash-always`` in every one; ``raise``, ``refuse`` and ``oom`` raise; ``hang`` stands still without a heartbeat.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import numpy as np

from wan_host.context import LaneContext
from wan_host.errors import UnsupportedRequest
from wan_host.hookspecs import hookimpl
from wan_host.model import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, wan_job_types
from wan_host.request import Clip, Generation, GenerationRequest

_WORD = re.compile(r"(pace|crash):([\d.]+)")
_DEFAULTS = JobDefaults(media="video", width=128, height=128, frames=9, fps=8, sample_shift=3.0, sample_solver="unipc")


@hookimpl
def list_models() -> list[ModelInfo]:
    """Offer ``instant``."""
    return [
        ModelInfo(
            name="instant",
            family="instant",
            runner="instant",
            job_types=wan_job_types(_DEFAULTS, _DEFAULTS, fast_steps=4, high_steps=8, fast_guidance=6.5, high_guidance=7.5),
            reference_modes=frozenset(ReferenceMode),
            image_to_image=True,
            bounds=SizeBounds(min_side=64, max_side=1280),
        )
    ]


@hookimpl
def load_model(model: ModelInfo, context: LaneContext) -> str:
    """Load nothing."""
    with context.stage("load"):
        return model.name


@hookimpl
def generate(request: GenerationRequest, context: LaneContext) -> Generation:
    """Draw a moving gradient that depends on the seed alone."""
    words = {key: float(value) for key, value in _WORD.findall(request.prompt)}
    with context.stage("denoise"):
        for step in range(1, request.num_inference_steps + 1):
            time.sleep(words.get("pace", 0.0))
            _fail(request, step, int(words.get("crash", 0)))
            context.step(step, request.num_inference_steps)
    clips = tuple(_draw(request, request.seed + index) for index in range(request.num_images))
    return Generation(clips=clips, metadata={"route": "instant"})


def _fail(request: GenerationRequest, step: int, crash_at: int) -> None:
    if "crash-always" in request.prompt or (step == crash_at and request.attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in request.prompt:
        time.sleep(3600)
    if "refuse" in request.prompt:
        raise UnsupportedRequest("the prompt asked for a refusal")
    if "raise" in request.prompt:
        raise ValueError("the prompt asked for an error")
    if "oom" in request.prompt and request.attempt == 1:
        raise MemoryError("the prompt asked for too much")


def _draw(request: GenerationRequest, seed: int) -> Clip:
    rows, columns = np.arange(request.height)[:, None], np.arange(request.width)[None, :]
    frames = np.empty((request.frames, request.height, request.width, 3), np.uint8)
    frames[..., 0] = (rows + seed % 256) % 256 // 2
    frames[..., 2] = seed % 37 * 6
    for index in range(request.frames):
        frames[index, ..., 1] = (columns + 4 * index) % 256 // 2
    return Clip(frames=frames, seed=seed)


def install(folder: Path, plugins: dict[str, str] | None = None, *, distribution: str = "instant-model") -> None:
    """Write a distribution's metadata into ``folder``, so that its entry points are found where ``folder`` is on the path.

    ``plugins`` maps entry-point names to modules; this one by default.
    """
    metadata = folder / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n", encoding="utf-8")
    lines = [f"{name} = {module}" for name, module in (plugins or {"instant": __name__}).items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[wan_host]", *lines, ""]), encoding="utf-8")
