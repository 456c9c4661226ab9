"""A job: what a payload means once the model, its defaults and the settings have had their say.

``resolve_job`` decides everything that can be decided without touching the network or a device. It never clamps (but for
``exact_copy_mode``, where the contract says so) and never falls back: what cannot be done raises InvalidJob, UnknownModel or
UnsupportedRequest with what was given and what is allowed.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from wan_host.errors import InvalidJob, UnknownModel, UnsupportedRequest, shown
from wan_host.frame_processors import FrameProcessor, plan
from wan_host.model import NO_MODEL, JobDefaults, ModelInfo, ReferenceMode
from wan_host.payload import TIME_RULE, LoraEntry, Payload, PayloadConfig, PayloadMetadata
from wan_host.request import GenerationRequest, Lora

DEFAULT_DENOISE_STRENGTH = 0.5
EXACT_COPY_DENOISE_STRENGTH = 0.05
LATEST_TIME = 1e11
"""Unix seconds; what is later was meant as milliseconds."""
_RESOLUTION = re.compile(r"\A([0-9]{2,4})x([0-9]{2,4})\Z")
_COMPARED_CHARACTERS = 100
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SLOTS = {
    ReferenceMode.NONE: (),
    ReferenceMode.SINGLE: ("image",),
    ReferenceMode.START: ("first_frame",),
    ReferenceMode.END: ("last_frame",),
    ReferenceMode.BOTH: ("first_frame", "last_frame"),
}
_FALLBACKS = {"image": "reference_image_url", "first_frame": "start_reference_url", "last_frame": "end_reference_url"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPolicy:
    """What the settings and the plugins allow a payload to ask for.

    ``frame_processors`` are the plugins that ``config.postprocess`` may name, with what they make of a clip's shape.
    """

    default_model: str | None = None
    max_prompt_characters: int = 4000
    frame_processors: Mapping[str, FrameProcessor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A job that can be run.

    ``request`` is complete but for the references' pixels, an enhanced prompt and the attempt. ``references`` maps the slots
    that the mode uses to their URIs. ``denoise_strength`` is the value as reported; the request holds it only where it acts.
    ``expires_at`` is Unix seconds, ``traceparent`` the W3C header of the trace that the job belongs to. ``notes`` are values
    that were ignored, for the log.
    """

    id: str
    user_id: str
    type: str
    model: ModelInfo
    request: GenerationRequest
    enhance: bool
    references: Mapping[str, str]
    subjects: tuple[str, ...] = ()
    reference_mode_source: str = "inferred"
    denoise_strength: float | None = None
    priority: int = 0
    expires_at: float | None = None
    traceparent: str | None = None
    notes: tuple[str, ...] = field(default=())


def resolve_job(payload: Payload, *, models: Mapping[str, ModelInfo], policy: JobPolicy, seed: int) -> Job:
    """Decide every value of a job. ``seed`` is the one that was drawn at intake; the payload's own wins."""
    config = payload.config or PayloadConfig()
    metadata = payload.metadata or PayloadMetadata()
    negative_prompt = payload.negative_prompt or config.negative_prompt or ""
    if config.negative_prompt and config.negative_prompt != negative_prompt:
        given = f"{len(config.negative_prompt)} characters"  # prompts do not belong into messages, which reach the log
        raise InvalidJob("config.negative_prompt", given, "negative_prompt says something else; give one of them")
    for name, text in (("prompt", payload.prompt), ("negative_prompt", negative_prompt)):
        if len(text) > policy.max_prompt_characters:
            raise InvalidJob(
                name,
                f"{len(text)} characters",
                f"at most {policy.max_prompt_characters} characters (WAN_HOST_MAX_PROMPT_CHARACTERS)",
            )
    model = _choose_model(config.model, policy.default_model, models)
    job_type, defaults = _choose_type(payload.type, model)
    mode, mode_source, notes = _choose_mode(config, metadata, defaults)
    notes += _unused(mode, config, metadata, defaults)
    traceparent, strange = _traceparent(metadata)
    notes += strange
    denoise = _denoise_strength(config, metadata)
    exact_copy = bool(metadata.exact_copy_mode)
    if exact_copy:
        denoise = min(denoise, EXACT_COPY_DENOISE_STRENGTH)
    if not payload.prompt and not (exact_copy and mode is not ReferenceMode.NONE):
        raise InvalidJob("prompt", payload.prompt, "it may be empty only for an exact copy of a reference")
    width, height = _size(config, defaults)
    request = GenerationRequest(
        job_id=payload.id,
        job_type=job_type,
        media=defaults.media,
        prompt=payload.prompt,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        frames=_frames(config, defaults),
        fps=_first(config.fps, default=defaults.fps),
        num_inference_steps=_same(
            {f"config.{name}": getattr(config, name) for name in ("num_inference_steps", "steps", "sample_steps")},
            defaults.num_inference_steps,
        ),
        guidance_scale=_same(
            {f"config.{name}": getattr(config, name) for name in ("guidance_scale", "sample_guide_scale")},
            defaults.guidance_scale,
        ),
        sample_shift=_first(config.sample_shift, default=defaults.sample_shift),
        sample_solver=_first(config.sample_solver, default=defaults.sample_solver),
        seed=_same({"config.seed": config.seed, "seed": payload.seed, "metadata.seed": metadata.seed}, seed),
        num_images=_num_images(config, defaults),
        reference_mode=mode,
        denoise_strength=denoise if mode is ReferenceMode.SINGLE else None,
        preset=_first(config.preset, default=_presets(model)[0]),
        loras=tuple(_lora(index, entry) for index, entry in enumerate(config.loras or ())),
    )
    _check_size(model, request)
    _check_features(model, request, subjects=len(config.reference_images or ()), models=models)
    request = plan(request, _processors(config.postprocess or (), policy.frame_processors))
    return Job(
        id=payload.id,
        user_id=payload.user_id,
        type=job_type,
        model=model,
        request=request,
        enhance=defaults.enhance,
        references={slot: _reference(slot, mode, config, metadata) for slot in _SLOTS[mode]},
        subjects=tuple(config.reference_images or ()),
        reference_mode_source=mode_source,
        denoise_strength=denoise if mode is not ReferenceMode.NONE else None,
        priority=payload.priority or 0,
        expires_at=_expiry(payload),
        traceparent=traceparent,
        notes=notes,
    )


def _first(*values: Any, default: Any) -> Any:
    return next((value for value in values if value is not None), default)


def _same(named: Mapping[str, Any], default: Any) -> Any:
    """Return the one value that several spellings of a field agree on; two different ones are refused, not guessed between."""
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        return default
    (name, value), *others = given.items()
    for other, second in others:
        if second != value:
            raise InvalidJob(other, second, f"{name} says {shown(value)}; give one of them")
    return value


def _choose_model(asked: str | None, default: str | None, models: Mapping[str, ModelInfo]) -> ModelInfo:
    usable = {name: model for name, model in models.items() if model.kind == "generate"}
    name = asked or default
    if name is None:
        if usable:
            raise UnknownModel(
                f"config.model: it is missing, and no WAN_HOST_MODEL says which to take; there are {_listed(usable)}"
            )
        raise UnknownModel(f"config.model: {NO_MODEL}")
    if name not in usable:
        hint = _hint(name, usable)
        where = "config.model" if asked else "WAN_HOST_MODEL"
        raise UnknownModel(f"{where}: {shown(name)} is offered by no installed plugin{hint}; there are {_listed(usable)}")
    return usable[name]


def _choose_type(given: str, model: ModelInfo) -> tuple[str, JobDefaults]:
    name = given.removeprefix("wan_") if given not in model.job_types else given
    if name not in model.job_types:
        hint = _hint(name, model.job_types)
        raise InvalidJob("type", given, f"model {model.name} serves {_listed(model.job_types)}{hint}")
    return name, model.job_types[name]


def _choose_mode(
    config: PayloadConfig, metadata: PayloadMetadata, defaults: JobDefaults
) -> tuple[ReferenceMode, str, tuple[str, ...]]:
    notes: list[str] = []
    named = {"config.reference_mode": config.reference_mode, "metadata.video_reference_mode": metadata.video_reference_mode}
    for name, value in named.items():
        if value is None:
            continue
        if isinstance(value, str) and value in set(ReferenceMode):
            mode = ReferenceMode(value)
            if defaults.media == "image" and mode not in {ReferenceMode.NONE, ReferenceMode.SINGLE}:
                raise InvalidJob(name, value, "image jobs take none and single")
            return mode, name.split(".", 1)[0], tuple(notes)
        notes.append(f"{name}: {shown(value)} is none of the five modes, ignored")
    present = {slot for slot in _FALLBACKS if _source(slot, config, metadata) is not None}
    if defaults.media == "image":
        present &= {"image"}
    if {"first_frame", "last_frame"} <= present:
        mode = ReferenceMode.BOTH
    elif "first_frame" in present:
        mode = ReferenceMode.START
    elif "last_frame" in present:
        mode = ReferenceMode.END
    else:
        mode = ReferenceMode.SINGLE if present else ReferenceMode.NONE
    return mode, "inferred", tuple(notes)


def _unused(mode: ReferenceMode, config: PayloadConfig, metadata: PayloadMetadata, defaults: JobDefaults) -> tuple[str, ...]:
    """Name what was given and does not count, for the log."""
    notes = [
        f"config.{slot} (or metadata.{fallback}) is not used in reference mode {mode.value}"
        for slot, fallback in _FALLBACKS.items()
        if slot not in _SLOTS[mode] and _source(slot, config, metadata) is not None
    ]
    if config.resolution is not None and not _resolution_counts(config, defaults):
        notes.append("config.resolution is not used: it counts in image jobs without width and height")
    return tuple(notes)


def _traceparent(metadata: PayloadMetadata) -> tuple[str | None, tuple[str, ...]]:
    """Return the W3C trace context, or a note that it is none: tracing fails no job."""
    given = metadata.traceparent
    if given is None or (isinstance(given, str) and _TRACEPARENT.fullmatch(given)):
        return given, ()
    return None, ("metadata.traceparent is no W3C trace context; the job gets a trace of its own",)


def _source(slot: str, config: PayloadConfig, metadata: PayloadMetadata) -> str | None:
    """Return a reference or its fallback; an empty string is an absent one, as it was to the worker of old."""
    return getattr(config, slot) or getattr(metadata, _FALLBACKS[slot]) or None


def _reference(slot: str, mode: ReferenceMode, config: PayloadConfig, metadata: PayloadMetadata) -> str:
    uri = _source(slot, config, metadata)
    if uri is None:
        allowed = f"reference mode {mode.value} needs it (or metadata.{_FALLBACKS[slot]}): a URL, a data: URI or a storage path"
        raise InvalidJob(f"config.{slot}", None, allowed)
    return uri


def _denoise_strength(config: PayloadConfig, metadata: PayloadMetadata) -> float:
    holders: dict[str, PayloadConfig | PayloadMetadata] = {"metadata": metadata, "config": config}
    given = _same({f"{name}.denoise_strength": holder.denoise_strength for name, holder in holders.items()}, None)
    if given is not None:
        return float(given)
    kept = _same({f"{name}.reference_strength": holder.reference_strength for name, holder in holders.items()}, None)
    return DEFAULT_DENOISE_STRENGTH if kept is None else round(1 - float(kept), 6)


def _size(config: PayloadConfig, defaults: JobDefaults) -> tuple[int, int]:
    if _resolution_counts(config, defaults):
        match = _RESOLUTION.match(config.resolution) if isinstance(config.resolution, str) else None
        if match is None:
            raise InvalidJob("config.resolution", config.resolution, "it must look like 480x832, width first")
        return int(match[1]), int(match[2])
    return _first(config.width, default=defaults.width), _first(config.height, default=defaults.height)


def _resolution_counts(config: PayloadConfig, defaults: JobDefaults) -> bool:
    absent = config.width is None and config.height is None
    return config.resolution is not None and absent and defaults.media == "image"


def _frames(config: PayloadConfig, defaults: JobDefaults) -> int:
    if defaults.media == "image" and config.frames not in {None, 1}:
        raise InvalidJob("config.frames", config.frames, "image jobs have 1")
    return int(_first(config.frames, default=defaults.frames))


def _num_images(config: PayloadConfig, defaults: JobDefaults) -> int:
    if defaults.media == "video" and config.num_images not in {None, 1}:
        raise InvalidJob("config.num_images", config.num_images, "only image jobs make several; a video job makes 1")
    return int(_first(config.num_images, default=1))


def _lora(index: int, entry: LoraEntry) -> Lora:
    name = _same({f"config.loras.{index}.name": entry.name, f"config.loras.{index}.path": entry.path}, None)
    if not name:
        raise InvalidJob(f"config.loras.{index}.name", None, "it must name a file in the allowed folder or repo@revision")
    return Lora(name=name, scale=_first(entry.scale, default=1.0))


def _expiry(payload: Payload) -> float | None:
    times = [time for name in ("deadline", "expires_at") if (time := _time(name, getattr(payload, name))) is not None]
    return min(times, default=None)


def _time(name: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds: float | None = None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(value)
            seconds = None if moment.tzinfo is None else moment.timestamp()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    if seconds is None:
        raise InvalidJob(name, value, TIME_RULE)
    if not 0 <= seconds <= LATEST_TIME:  # NaN is not in it either
        raise InvalidJob(name, value, f"{TIME_RULE}, from 0 to {LATEST_TIME:.0f} seconds (not milliseconds)")
    return float(seconds)


def _check_size(model: ModelInfo, request: GenerationRequest) -> None:
    bounds = model.bounds
    for name, side in (("width", request.width), ("height", request.height)):
        if side % bounds.multiple or not bounds.min_side <= side <= bounds.max_side:
            allowed = f"model {model.name} takes multiples of {bounds.multiple} from {bounds.min_side} to {bounds.max_side}"
            raise InvalidJob(f"config.{name}", side, allowed)
    if request.width * request.height > bounds.max_pixels:
        size = f"{request.width}x{request.height}"
        raise InvalidJob("config.width, config.height", size, f"model {model.name} takes at most {bounds.max_pixels} pixels")
    if request.frames > bounds.max_frames:
        raise InvalidJob("config.frames", request.frames, f"model {model.name} makes 1 to {bounds.max_frames}")


def _check_features(model: ModelInfo, request: GenerationRequest, *, subjects: int, models: Mapping[str, ModelInfo]) -> None:
    """Refuse what the model cannot do, and name those that can."""
    if request.sample_solver not in model.solvers:
        raise InvalidJob("config.sample_solver", request.sample_solver, f"model {model.name} has {_listed(model.solvers)}")
    if request.preset not in _presets(model):
        raise InvalidJob("config.preset", request.preset, f"model {model.name} has {_listed(_presets(model))}")
    image_to_image = request.media == "image" and request.reference_mode is ReferenceMode.SINGLE
    modes, most = _listed(mode.value for mode in model.reference_modes), model.max_subject_references
    features: tuple[tuple[Callable[[ModelInfo], bool], str], ...] = (
        (lambda one: one.loras or not request.loras, f"config.loras: model {model.name} takes no adapters"),
        (
            lambda one: subjects <= one.max_subject_references,
            f"config.reference_images: {subjects} given, model {model.name} takes at most {most}",
        ),
        (
            lambda one: one.image_to_image or not image_to_image,
            f"config.image: model {model.name} cannot do image-to-image",
        ),
        (
            lambda one: image_to_image or request.reference_mode in one.reference_modes,
            f"config.reference_mode: model {model.name} does {modes}, not {request.reference_mode.value!r}",
        ),
    )
    for can, refusal in features:
        if not can(model):
            able = [
                name
                for name, one in models.items()
                if request.job_type in one.job_types and all(can_do(one) for can_do, _ in features)
            ]
            installed = f"; of the installed models, {_listed(able)} can" if able else ""
            raise UnsupportedRequest(refusal + installed + (f"; {model.advice}" if model.advice else ""))


def _processors(asked: Iterable[str], known: Mapping[str, FrameProcessor]) -> list[tuple[str, FrameProcessor]]:
    for index, name in enumerate(asked):
        if name not in known:
            hint = _hint(name, known)
            raise InvalidJob(f"config.postprocess.{index}", name, f"the installed frame processors are {_listed(known)}{hint}")
    return [(name, known[name]) for name in asked]


def _presets(model: ModelInfo) -> tuple[str, ...]:
    return model.presets or ("exact",)


def _hint(name: str, known: Iterable[str]) -> str:
    """Suggest the name that was probably meant; ``name`` is a stranger's, so only its beginning is compared."""
    close = difflib.get_close_matches(name[:_COMPARED_CHARACTERS], list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
