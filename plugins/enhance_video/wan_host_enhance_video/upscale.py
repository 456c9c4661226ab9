"""The plugin ``upscale``: twice the width and twice the height."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import Clip, FrameProcessor, hookimpl

if TYPE_CHECKING:
    from wan_host import LaneContext


@hookimpl
def describe_processor() -> FrameProcessor:
    """Both sides doubled, of images and videos."""
    return FrameProcessor(scale=2)


@hookimpl
def process_frames(clip: Clip, context: LaneContext) -> Clip:
    """Double both sides of every frame."""
    from wan_host_enhance_video.enlarging import enlarge_all

    return Clip(frames=enlarge_all(clip.frames, context), seed=clip.seed)
