"""The plugin ``interpolate``: the model makes about every second frame, optical flow the ones between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import Clip, FrameProcessor, hookimpl

if TYPE_CHECKING:
    from wan_host import GenerationRequest, LaneContext


@hookimpl
def describe_processor() -> FrameProcessor:
    """Twice the frames, of videos."""
    return FrameProcessor(rate=2, media=frozenset({"video"}))


@hookimpl
def process_frames(clip: Clip, request: GenerationRequest, context: LaneContext) -> Clip:
    """Spread the clip evenly over the asked number of frames; its first and last frame stay as they are."""
    from wan_host_enhance_video.motion import retime

    return Clip(frames=retime(clip.frames, request.frames, context), seed=clip.seed)
