"""What a hook returned, checked: a wrong result fails here, with the plugin's name, and not in an encoder later.

Values are rebuilt from plain types on the way, so that no class of a plugin, and no tensor, crosses into the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wan_host.errors import GenerationFailed
from wan_host.request import Clip, Enhancement, Generation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wan_host.request import GenerationRequest

_CHANNELS = 3


def checked_generation(returned: object, request: GenerationRequest, runner: str) -> Generation:
    """Return a plain Generation of what ``runner`` returned. Raises GenerationFailed that says what was expected."""
    who = f"generate of plugin {runner!r}"
    if not isinstance(returned, Generation):
        raise GenerationFailed(f"{who} returned {_type_name(returned)}; expected a Generation")
    if len(returned.clips) != request.num_images:
        raise GenerationFailed(f"{who} returned {len(returned.clips)} clips; expected {request.num_images} (num_images)")
    clips = tuple(_checked_clip(clip, f"{who}: clip {i}", _shape(request)) for i, clip in enumerate(returned.clips))
    for i, clip in enumerate(clips):
        if clip.seed != request.seed + i:
            raise GenerationFailed(f"{who}: clip {i} has seed {clip.seed}; expected {request.seed + i} (seed + {i})")
    for key, value in returned.metadata.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
            raise GenerationFailed(f"{who}: metadata {key!r} is {_type_name(value)}; expected str, int, float or bool")
    return Generation(clips=clips, metadata=dict(returned.metadata))


def checked_clip(returned: object, wanted: GenerationRequest, plugin: str) -> Clip:
    """Return a plain Clip of what a frame processor returned, of the shape that ``wanted`` says. Raises GenerationFailed."""
    return _checked_clip(returned, f"process_frames of plugin {plugin!r}", _shape(wanted))


def checked_enhancement(returned: object, plugin: str) -> Enhancement:
    """Return a plain Enhancement of what ``plugin`` returned. Raises GenerationFailed."""
    who = f"enhance_prompt of plugin {plugin!r}"
    if not isinstance(returned, Enhancement):
        raise GenerationFailed(f"{who} returned {_type_name(returned)}; expected an Enhancement")
    for name in ("prompt", "source", "reason"):
        if not isinstance(getattr(returned, name), str):
            raise GenerationFailed(f"{who}: {name} is {_type_name(getattr(returned, name))}; expected str")
    return Enhancement(prompt=returned.prompt, source=returned.source, reason=returned.reason)


def _shape(request: GenerationRequest) -> tuple[int, ...]:
    return (request.frames, request.height, request.width, _CHANNELS)


def _checked_clip(clip: object, who: str, shape: tuple[int, ...]) -> Clip:
    if not isinstance(clip, Clip):
        raise GenerationFailed(f"{who} is {_type_name(clip)}; expected a Clip")
    frames: object = clip.frames
    if not isinstance(frames, np.ndarray):
        raise GenerationFailed(f"{who}: frames are {_type_name(frames)}; expected a numpy array, uint8 of shape {shape}")
    if frames.shape != shape or frames.dtype != np.uint8:
        raise GenerationFailed(f"{who}: frames are {frames.dtype} of shape {frames.shape}; expected uint8 of shape {shape}")
    plain: NDArray[np.uint8] = np.ascontiguousarray(frames)
    return Clip(frames=plain, seed=int(clip.seed))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
