"""How a request's references condition it: the route, what VACE sees, and how far an image is denoised."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from wan_host import ReferenceMode, UnsupportedRequest
from wan_host_wan21.checkpoint import MAX_SUBJECTS, VACE_CHECKPOINT, Checkpoint
from wan_host_wan21.sampling import generated_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wan_host import GenerationRequest

_GREY = 128
"""What VACE is shown where there is no reference frame (ali-vilab/VACE, annotators/frameref.py)."""
_EVEN = 0.5
"""The denoise strength at which a reference has its plain effect; it is also the wire contract's default."""


class Route(StrEnum):
    """Which pipeline makes the clip."""

    TEXT = "text_to_video"
    IMAGE = "image_to_image"
    CONDITIONED = "vace"
    ANIMATE = "image_to_video"
    COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What is done with the references. ``first`` and ``last`` are frames to keep, uint8 RGB of the request's size.

    ``start`` is an image to start denoising from, repeated over the frames, and ``strength`` how far: 1 is pure noise.
    ``scale`` weighs the adapter (VACE's conditioning scale) and the pinning of frames.
    """

    route: Route
    first: NDArray[np.uint8] | None = None
    last: NDArray[np.uint8] | None = None
    start: NDArray[np.uint8] | None = None
    strength: float = 1.0
    scale: float = 1.0
    acted: float | None = None
    """The denoise strength that acted, where it did."""
    subjects: tuple[NDArray[np.uint8], ...] = ()

    @property
    def pins(self) -> bool:
        """Whether there are frames to pin."""
        return (self.first is not None or self.last is not None) and self.scale > 0


def plan(request: GenerationRequest, checkpoint: Checkpoint, name: str) -> Plan:
    """Choose the route. Raise UnsupportedRequest where the checkpoint has none; the message names one that has."""
    references, mode = request.references, request.reference_mode
    image_job = request.media == "image"
    if references.subjects and not checkpoint.adapter:
        raise UnsupportedRequest(f"config.reference_images: {name} takes none, {VACE_CHECKPOINT} takes up to {MAX_SUBJECTS}")
    if len(references.subjects) > MAX_SUBJECTS:
        raise UnsupportedRequest(f"config.reference_images: {len(references.subjects)} given; {name} takes up to {MAX_SUBJECTS}")
    if image_job and checkpoint.animates:
        raise UnsupportedRequest(f"type: {name} makes videos only; {VACE_CHECKPOINT} makes images as well")
    if image_job and mode not in {ReferenceMode.NONE, ReferenceMode.SINGLE}:
        raise UnsupportedRequest(f"config.reference_mode: {mode} is for videos; images take none and single")
    if not image_job and mode not in checkpoint.reference_modes:
        allowed = ", ".join(sorted(checkpoint.reference_modes))
        raise UnsupportedRequest(
            f"config.reference_mode: {name} cannot do {mode}, only {allowed}; a checkpoint that can is {VACE_CHECKPOINT}"
        )
    if mode is ReferenceMode.BOTH and request.frames == 1:
        raise UnsupportedRequest("config.frames: 1 frame cannot be first and last; reference mode both needs at least 2")
    if mode is ReferenceMode.NONE:
        route = Route.CONDITIONED if references.subjects else Route.TEXT
        return Plan(route=route, subjects=references.subjects)
    if mode is not ReferenceMode.SINGLE:
        return Plan(
            route=Route.ANIMATE if checkpoint.animates else Route.CONDITIONED,
            first=None if mode is ReferenceMode.END else _given(references.first_frame, "config.first_frame"),
            last=None if mode is ReferenceMode.START else _given(references.last_frame, "config.last_frame"),
            subjects=references.subjects,
        )
    strength = _EVEN if request.denoise_strength is None else request.denoise_strength
    image = _given(references.image, "config.image")
    if image_job and strength > 0:
        route = Route.CONDITIONED if references.subjects else Route.IMAGE
        return Plan(route=route, start=image, strength=strength, acted=strength, subjects=references.subjects)
    return _single(request, image, strength, animates=checkpoint.animates)


def _single(request: GenerationRequest, image: NDArray[np.uint8], strength: float, *, animates: bool) -> Plan:
    """Weigh one image by the denoise strength: 0 returns it, 1 ignores it.

    An image job is image-to-image with just that strength. In a video the image is the first frame that the model sees. At
    one half that is all; below, denoising starts ever later from the still image as well, and above, the adapter's weight
    falls. An image-to-video checkpoint has no such weight: there nothing above one half acts.
    """
    if strength <= 0:
        return Plan(route=Route.COPY, start=image, acted=strength)
    acted = min(strength, _EVEN) if animates else strength
    return Plan(
        route=Route.ANIMATE if animates else Route.CONDITIONED,
        first=image,
        start=image if acted < _EVEN else None,
        strength=min(1.0, acted / _EVEN),
        scale=min(1.0, (1.0 - acted) / _EVEN),
        acted=acted,
        subjects=request.references.subjects,
    )


def control_video(plan: Plan, frames: int, width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Return VACE's video (F, height, width, 3) and mask (F, height, width): 0 keeps, 255 generates; None without frames.

    ``frames`` is what is published; F is the next 4k+1. The last frame is held over those that are cut off again, so that
    it stands where it will be seen.
    """
    if plan.first is None and plan.last is None:
        return None
    total = generated_frames(frames)
    video = np.full((total, height, width, 3), _GREY, np.uint8)
    mask = np.full((total, height, width), 255, np.uint8)
    if plan.first is not None:
        video[0], mask[0] = plan.first, 0
    if plan.last is not None:
        video[frames - 1 :], mask[frames - 1 :] = plan.last, 0
    return video, mask


def on_canvas(subject: NDArray[np.uint8], width: int, height: int) -> Any:
    """Return a subject as a PIL image of exactly (width, height), whole, in the middle of white.

    The pipeline would do the same, but with a filter that aliases.
    """
    from PIL import Image, ImageOps

    fitted = ImageOps.contain(Image.fromarray(subject), (width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return canvas


def _given(image: NDArray[np.uint8] | None, field: str) -> NDArray[np.uint8]:
    if image is None:
        raise UnsupportedRequest(f"{field}: the mode needs it and it is missing")
    return image
