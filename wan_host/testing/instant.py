"""A model that costs nothing: drawn frames at once, and faults on demand. A plugin for tests and benchmarks.

``install`` makes it discoverable in a folder that is put on ``PYTHONPATH``, for the host and for its lanes alike. Words in the
prompt steer it: ``pace:0.2`` sleeps that many seconds a step; ``crash:2`` kills the lane at step 2 of the first attempt and
``crash-always`` in every one; ``raise``, ``refuse`` and ``oom`` raise; ``hang`` stands still without a heartbeat; ``preview``
offers a picture at every step. Where ``WAN_HOST_TESTING_RUNS`` names a file, every run adds a line to it: job id and attempt.
"""

from __future__ import annotations

import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wan_host.checkpoint import Checkpoint
from wan_host.context import LaneContext
from wan_host.errors import UnsupportedRequest
from wan_host.hookspecs import hookimpl
from wan_host.model import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, wan_job_types
from wan_host.request import Clip, Generation, GenerationRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUNS_VARIABLE = "WAN_HOST_TESTING_RUNS"
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
    """Draw a moving gradient that depends on the seed and the reference alone."""
    _note_run(request)
    words = {key: float(value) for key, value in _WORD.findall(request.prompt)}
    kept = context.resume({"instant": "1"})
    with context.stage("denoise"):
        for step in range(1 + (kept.step if kept is not None else 0), request.num_inference_steps + 1):
            time.sleep(words.get("pace", 0.0))
            _fail(request, step, int(words.get("crash", 0)))
            context.step(step, request.num_inference_steps)
            if "preview" in request.prompt:
                context.preview(draw(64, 48, 1, step).frames[0])
            context.checkpoint(partial(_save, step))
    given = request.references
    pictures = (picture for picture in (given.image, given.first_frame, given.last_frame) if picture is not None)
    reference = next(pictures, None)
    clips = tuple(
        draw(request.width, request.height, request.frames, request.seed + index, reference)
        for index in range(request.num_images)
    )
    return Generation(clips=clips, metadata={"route": "instant"})


def _save(step: int) -> Checkpoint:
    return Checkpoint(step=step, arrays={"steps": np.arange(step)})


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


def _note_run(request: GenerationRequest) -> None:
    """Keep a record that outlives this process: one write, so that lines of several lanes do not mix."""
    path = os.environ.get(RUNS_VARIABLE)
    if path:
        with Path(path).open("ab", buffering=0) as ledger:
            ledger.write(f"{request.job_id} {request.attempt}\n".encode())


def draw(width: int, height: int, frames: int, seed: int, reference: NDArray[np.uint8] | None = None) -> Clip:
    """Draw the clip of a seed. ``reference``, of shape (height, width, 3), shows in the blue channel."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    drawn = np.empty((frames, height, width, 3), np.uint8)
    drawn[..., 0] = (rows + seed % 256) % 256 // 2
    drawn[..., 2] = seed % 37 * 6 if reference is None else reference[..., 2]
    for index in range(frames):
        drawn[index, ..., 1] = (columns + 4 * index) % 256 // 2
    return Clip(frames=drawn, seed=seed)


def install(folder: Path, plugins: dict[str, str] | None = None, *, distribution: str = "instant-model") -> None:
    """Write a distribution's metadata into ``folder``, so that its entry points are found where ``folder`` is on the path.

    ``plugins`` maps entry-point names to modules; this one by default.
    """
    metadata = folder / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n", encoding="utf-8")
    lines = [f"{name} = {module}" for name, module in (plugins or {"instant": __name__}).items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[wan_host]", *lines, ""]), encoding="utf-8")
