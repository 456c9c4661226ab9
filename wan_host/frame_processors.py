"""Frame processors: what a plugin says of its ``process_frames``, and how the processors of a job are planned.

Sizes are planned from the model's onward, since ``config.width`` and ``config.height`` are what the model makes; numbers of
frames from the last processor's back, since ``config.frames`` is what is published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from wan_host.errors import InvalidJob
from wan_host.model import MediaKind
from wan_host.request import FrameStep, GenerationRequest

LONGEST_SIDE = 4096
"""Pixels: what decoders of H.264 commonly play, and the bound of ``config.width`` and ``config.height``."""
_FEWEST_INTERPOLATED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameProcessor:
    """What ``process_frames`` of a plugin makes of a clip's shape. The default: nothing, it changes pixels only.

    ``media``: the kinds of job it serves. ``rate``: it puts up to ``rate - 1`` new frames between each two, so the model makes
    fewer. ``scale``: it multiplies both sides by this.
    """

    media: frozenset[MediaKind] = frozenset({"image", "video"})
    rate: int = 1
    scale: int = 1

    def frames_needed(self, frames: int) -> int:
        """Return how many frames it must be given to return ``frames``, the first and the last among them."""
        return -(-(frames - 1) // self.rate) + 1


def plan(request: GenerationRequest, processors: Sequence[tuple[str, FrameProcessor]]) -> GenerationRequest:
    """Return the request that the model gets, with what each processor must return. Raises InvalidJob for what cannot be done."""
    names = [name for name, _ in processors]
    for index, (name, processor) in enumerate(processors):
        if name in names[:index]:
            raise InvalidJob(f"config.postprocess.{index}", name, "it is in the list already; each processor runs once")
        if request.media not in processor.media:
            article = "an" if request.media == "image" else "a"
            allowed = f"it serves {' and '.join(processor.media)} jobs, and {request.job_type} makes {article} {request.media}"
            raise InvalidJob(f"config.postprocess.{index}", name, allowed)
    frames = request.frames
    steps: list[FrameStep] = []
    for name, processor in reversed(processors):
        if processor.rate > 1 and frames < _FEWEST_INTERPOLATED:
            given = "" if frames == request.frames else f" ({frames} are left by what follows it)"
            allowed = f"{name} needs at least {_FEWEST_INTERPOLATED}{given}: it is given the first, the last, and fewer between"
            raise InvalidJob("config.frames", request.frames, allowed)
        steps.insert(0, FrameStep(plugin=name, frames=frames, width=0, height=0))
        frames = processor.frames_needed(frames)
    width, height = request.width, request.height
    for index, (name, processor) in enumerate(processors):
        width, height = width * processor.scale, height * processor.scale
        if processor.scale > 1 and max(width, height) > LONGEST_SIDE:
            allowed = f"it would make {width}x{height}; at most {LONGEST_SIDE} pixels a side"
            raise InvalidJob(f"config.postprocess.{index}", name, allowed)
        steps[index] = dataclasses.replace(steps[index], width=width, height=height)
    return dataclasses.replace(request, frames=frames, postprocess=tuple(steps))
