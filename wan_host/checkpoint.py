"""Checkpoints of unfinished jobs: what a runner saves between denoising steps, and the file that holds it.

A safetensors file whose metadata says whose it is (``identity``: job, request, model, device, versions) and carries a digest of
everything else. Whatever does not match exactly is not gone on from: the job begins anew, which is never wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wan_host.model import ModelInfo
    from wan_host.request import GenerationRequest

_KEY = "wan_host"
_LENGTH = struct.Struct("<Q")
_HEADER_LIMIT = 1 << 20
_SHOWN = 60


class CheckpointRejected(Exception):
    """A checkpoint is damaged, or was made for something else; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A generation after ``step`` denoising steps of the whole job, with all that its runner needs to go on.

    ``arrays``: numpy arrays by name; ``values``: what JSON can hold, by name.
    """

    step: int
    arrays: Mapping[str, NDArray[Any]]
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """How a lane keeps the checkpoint of one job: in the file ``path``, every ``every`` steps, for whom."""

    path: str
    every: int
    identity: Mapping[str, str]


def identify(request: GenerationRequest, model: ModelInfo, versions: Mapping[str, str]) -> dict[str, str]:
    """Return what must be the same for another attempt to go on from a checkpoint, except for the device."""
    return {
        "job": request.job_id,
        "request": _digest_of({**_plain(request), "attempt": 0}),
        "model": _digest_of({**_plain(model), "job_types": "", "description": ""}),
        **versions,
    }


def write(path: Path, checkpoint: Checkpoint, identity: Mapping[str, str]) -> None:
    """Put a checkpoint at ``path``, where readers see the old one or the whole new one. Raises OSError, TypeError, ValueError."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    head = {"step": checkpoint.step, "identity": dict(identity), "values": dict(checkpoint.values)}
    text = json.dumps({**head, "digest": _digest(head, arrays)}, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(save(arrays, {_KEY: text}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path, identity: Mapping[str, str]) -> Checkpoint | None:
    """Return the checkpoint at ``path``, None where there is none. Raises CheckpointRejected."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointRejected(f"it cannot be read: {error.strerror}") from error
    try:
        head = _head(data)
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointRejected(f"it is damaged: {error}") from error
    made = head["identity"]
    for name in sorted(identity.keys() | made.keys()):
        if identity.get(name) != made.get(name):
            raise CheckpointRejected(f"its {name} is {_short(made.get(name))}, this attempt's is {_short(identity.get(name))}")
    if head.pop("digest", "") != _digest(head, arrays):
        raise CheckpointRejected("it is damaged: its content is not what was written")
    return Checkpoint(step=head["step"], arrays=arrays, values=head["values"])


def step_of(path: Path) -> int:
    """Return the step that a file claims to stand at, 0 where it is none."""
    try:
        with path.open("rb") as file:
            length = _LENGTH.unpack(file.read(_LENGTH.size))[0]
            return int(_head(_LENGTH.pack(length) + file.read(min(length, _HEADER_LIMIT)))["step"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return 0


def _head(data: bytes) -> dict[str, Any]:
    """Return what the metadata of a safetensors file says. Raises what its parts raise."""
    (length,) = _LENGTH.unpack_from(data)
    if length > min(_HEADER_LIMIT, len(data) - _LENGTH.size):
        raise ValueError("its header is cut off")
    head = json.loads(json.loads(data[_LENGTH.size : _LENGTH.size + length])["__metadata__"][_KEY])
    if not isinstance(head["step"], int) or not isinstance(head["identity"], dict) or not isinstance(head["values"], dict):
        raise TypeError("its metadata has other types")
    return dict(head)


def _digest(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Digest all that a checkpoint says: no flipped bit may become a clip that nobody asked for."""
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_as_json).encode()).hexdigest()


def _as_json(value: Any) -> Any:
    """Return what stands for a value in a fingerprint: arrays by a digest of their bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if hasattr(value, "tobytes"):
        array: NDArray[np.uint8] = value
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    return str(value)


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN else f"{text[:12]}...")
