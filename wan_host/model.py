"""What a plugin says of a model: metadata only, nothing is loaded or imported to make one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

NO_MODEL = (
    "no model is installed: `pip install wan-host-tiny-wan` brings a small one that runs anywhere, "
    "`pip install wan-host-wan21` runs Wan 2.1 checkpoints (`wan-host models pull wan2.1-vace-1.3b`)"
)
MediaKind = Literal["image", "video"]
Solver = Literal["unipc", "dpm++"]


class ReferenceMode(StrEnum):
    """Which reference images condition a generation."""

    NONE = "none"
    SINGLE = "single"
    START = "start"
    END = "end"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefaults:
    """What a job type makes with a model, and the values of parameters that a payload leaves out.

    Sizes are pixels; ``frames`` is the exact number in the published file; ``fps`` is a property of the encoding alone.
    """

    media: MediaKind
    enhance: bool = False
    width: int = 480
    height: int = 832
    frames: int = 83
    fps: int = 24
    num_inference_steps: int = 25
    guidance_scale: float = 6.5
    sample_shift: float = 5.0
    sample_solver: Solver = "dpm++"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBounds:
    """Sizes a model can be asked for: each side within ``min_side..max_side`` pixels and a multiple of ``multiple``."""

    min_side: int = 64
    max_side: int = 1280
    max_pixels: int = 1280 * 720
    max_frames: int = 83
    multiple: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that a plugin offers.

    ``runner`` is the entry-point name of the plugin whose ``load_model`` and ``generate`` (or ``enhance_prompt``, for
    ``kind="enhance"``) serve it; a fine-tune names another plugin's runner and a ``path``, and needs no code of its own.
    ``path`` is a local folder or a pinned hub id. ``options`` goes to the runner as it stands. ``vram_mib`` is what the
    loaded weights need (0: unknown). ``advice`` ends the refusal of what this model cannot do: a clause that names one that
    can. ``prompt_tokens`` is how long an enhanced prompt may be, in tokens of the model's text
    encoder. ``job_types`` maps every job type that the model serves to its defaults.
    """

    name: str
    family: str
    runner: str
    kind: Literal["generate", "enhance"] = "generate"
    path: str = ""
    description: str = ""
    job_types: Mapping[str, JobDefaults] = field(default_factory=dict)
    reference_modes: frozenset[ReferenceMode] = frozenset({ReferenceMode.NONE})
    image_to_image: bool = False
    max_subject_references: int = 0
    loras: bool = False
    advice: str = ""
    solvers: frozenset[Solver] = frozenset({"unipc", "dpm++"})
    presets: tuple[str, ...] = ("exact",)
    bounds: SizeBounds = SizeBounds()
    prompt_tokens: int = 512
    vram_mib: int = 0
    random_weights: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword: read-only mappings have no pickle of their own."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["job_types"], values["options"] = dict(self.job_types), dict(self.options)
        return (_rebuild, (values,))

    def __post_init__(self) -> None:
        """Freeze the mappings, so that no plugin changes what another one offered."""
        object.__setattr__(self, "job_types", MappingProxyType(dict(self.job_types)))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


def _rebuild(values: dict[str, object]) -> ModelInfo:
    return ModelInfo(**values)  # type: ignore[arg-type]  # the values come from the fields of a ModelInfo


def wan_job_types(
    video: JobDefaults,
    image: JobDefaults,
    *,
    fast_steps: int,
    high_steps: int,
    fast_guidance: float,
    high_guidance: float,
) -> dict[str, JobDefaults]:
    """Return the eight job types of the wire contract: fast and high, plain and with an enhanced prompt.

    ``video`` and ``image`` carry the size, length, rate, shift and solver; steps and guidance follow from the quality.
    """
    types = {}
    bases: tuple[tuple[MediaKind, JobDefaults], ...] = (("image", image), ("video", video))
    for media, base in bases:
        for quality, steps, guidance in (("fast", fast_steps, fast_guidance), ("high", high_steps, high_guidance)):
            plain = replace(
                base,
                media=media,
                num_inference_steps=steps,
                guidance_scale=guidance,
                frames=1 if media == "image" else base.frames,
            )
            types[f"{media}_{quality}"] = plain
            types[f"{media}7b_{quality}_enhanced"] = replace(plain, enhance=True)
    return types
