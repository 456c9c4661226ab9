"""What goes into a lane and what comes out of it. Everything here is frozen and crosses a process border by pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wan_host.model import MediaKind, ReferenceMode, Solver

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """An adapter for one job: ``name`` as the payload gives it (a name, a path or ``repo@revision``) and its weight."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """Decoded reference images: uint8 RGB of shape (height, width, 3).

    ``image``, ``first_frame`` and ``last_frame`` are already fitted to the size of the request by centre crop; ``subjects``
    keep their own sizes.
    """

    image: NDArray[np.uint8] | None = None
    first_frame: NDArray[np.uint8] | None = None
    last_frame: NDArray[np.uint8] | None = None
    subjects: tuple[NDArray[np.uint8], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStep:
    """What one frame processor must return: clips of exactly (frames, height, width, 3). ``plugin`` is its name."""

    plugin: str
    frames: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationRequest:
    """One job as a runner sees it: every value is present, checked against the model and meant literally.

    ``frames`` is what must come back per clip (1 for images); ``num_images`` clips come back, clip i made from ``seed + i``.
    A frame processor gets the request with ``frames``, ``width`` and ``height`` of what it must return.
    ``denoise_strength`` is None where it does not act. ``attempt`` counts from 1.
    """

    job_id: str
    job_type: str
    media: MediaKind
    prompt: str
    width: int
    height: int
    frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    sample_shift: float
    sample_solver: Solver
    seed: int
    negative_prompt: str = ""
    num_images: int = 1
    reference_mode: ReferenceMode = ReferenceMode.NONE
    references: References = References()
    denoise_strength: float | None = None
    preset: str = "exact"
    loras: tuple[Lora, ...] = ()
    postprocess: tuple[FrameStep, ...] = ()
    attempt: int = 1

    @property
    def published_frames(self) -> int:
        """How many frames a published file has: ``frames``, or what the last frame processor makes of them."""
        return self.postprocess[-1].frames if self.postprocess else self.frames

    @property
    def reference_frames(self) -> tuple[int, ...]:
        """Which published frames show a reference: 0 is the first, -1 the last."""
        first = self.reference_mode in {ReferenceMode.SINGLE, ReferenceMode.START, ReferenceMode.BOTH}
        last = self.reference_mode in {ReferenceMode.END, ReferenceMode.BOTH}
        return (*((0,) if first else ()), *((-1,) if last else ()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """Generated frames: uint8 RGB of shape (frames, height, width, 3), and the seed that made them."""

    frames: NDArray[np.uint8]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """What ``generate`` returns: the clips in asset order, and scalars about what was done, which enter the report."""

    clips: tuple[Clip, ...]
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhanceRequest:
    """A prompt to enhance, and what it is for."""

    prompt: str
    job_type: str
    media: MediaKind
    max_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhancement:
    """What ``enhance_prompt`` returns: the text to use, and where it came from.

    ``source`` is the model's name (``qwen_base`` for the seed's), or ``none`` where the original stands; ``reason`` says why.
    """

    prompt: str
    source: str
    reason: str = ""
