"""The job payload as producers push it: names, types and ranges of the wire contract, and nothing resolved yet.

Real producers send many more fields than these; those are kept (``extra="allow"``) and ignored. ``null`` counts as absent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wan_host.errors import InvalidJob

ID_PATTERN = r"[A-Za-z0-9._-]{1,128}"
_ID = re.compile(rf"\A{ID_PATTERN}\Z")
ID_RULE = "1 to 128 of the characters A-Z a-z 0-9 . _ - (and not '.' or '..'), because it becomes part of a path"
MAX_SEED = 2**63 - 8
"""Room for the six images of a job and for what samplers add."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Unit = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=200)]
Guidance = Annotated[float, Field(ge=0, le=30)]
Reference = str
"""A URL, a ``data:`` URI or a storage path; empty counts as absent, because producers leave one out that way."""
TIME_RULE = "it must be Unix seconds or an ISO 8601 time with its zone"


class _Lenient(BaseModel):
    """Strict in types (no number is read from a string), open to unknown fields."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class LoraEntry(_Lenient):
    """One entry of ``config.loras``."""

    name: str | None = None
    path: str | None = None
    scale: Annotated[float, Field(ge=-4, le=4)] | None = None


class PayloadConfig(_Lenient):
    """``config`` of a payload."""

    width: Annotated[int, Field(ge=16, le=4096)] | None = None
    height: Annotated[int, Field(ge=16, le=4096)] | None = None
    resolution: Any = None
    frames: Annotated[int, Field(ge=1, le=83)] | None = None
    fps: Annotated[int, Field(ge=8, le=24)] | None = None
    num_inference_steps: Steps | None = None
    steps: Steps | None = None
    sample_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    sample_guide_scale: Guidance | None = None
    sample_solver: Literal["unipc", "dpm++"] | None = None
    sample_shift: Annotated[float, Field(gt=0, le=30)] | None = None
    seed: Seed | None = None
    num_images: Annotated[int, Field(ge=1, le=6)] | None = None
    negative_prompt: str | None = None
    loras: Annotated[list[LoraEntry], Field(max_length=8)] | None = None
    model: str | None = None
    preset: str | None = None
    postprocess: list[str] | None = None
    reference_images: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None = None
    reference_mode: Any = None
    image: Reference | None = None
    first_frame: Reference | None = None
    last_frame: Reference | None = None
    denoise_strength: Unit | None = None
    reference_strength: Unit | None = None


class PayloadMetadata(_Lenient):
    """``metadata`` of a payload."""

    reference_image_url: Reference | None = None
    start_reference_url: Reference | None = None
    end_reference_url: Reference | None = None
    video_reference_mode: Any = None
    denoise_strength: Unit | None = None
    reference_strength: Unit | None = None
    exact_copy_mode: bool | None = None
    seed: Seed | None = None
    traceparent: Any = None


class Payload(_Lenient):
    """A job as it was pushed."""

    id: str
    type: str
    prompt: str
    user_id: str
    negative_prompt: str | None = None
    seed: Seed | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    deadline: Any = None
    expires_at: Any = None
    config: PayloadConfig | None = None
    metadata: PayloadMetadata | None = None

    @field_validator("id", "user_id")
    @classmethod
    def _path_segment(cls, value: str) -> str:
        if not is_path_segment(value):
            raise ValueError(ID_RULE)
        return value


def is_path_segment(value: str) -> bool:
    """Tell whether an id is safe as one segment of a path, a key and a file name."""
    return bool(_ID.match(value)) and value not in {".", ".."}


def parse_payload(text: str | bytes) -> Payload:
    """Return the payload in a queue entry. Raises InvalidJob for the first field that is wrong."""
    try:
        return Payload.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "payload"
        if first["type"] == "missing":
            raise InvalidJob(field, None, "it is required") from None
        if first["type"] == "json_invalid":
            raise InvalidJob("payload", f"{len(text)} bytes", f"it must be a JSON object ({first['ctx']['error']})") from None
        raise InvalidJob(field, _shown(field, first["input"]), _allowed(first)) from None


def _allowed(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _shown(field: str, value: object) -> object:
    """Return what a message may show of a value: it reaches the log, where prompts do not belong."""
    whole = field in {"payload", "config", "metadata"}
    return type(value).__name__ if whole or field.endswith("prompt") else value
