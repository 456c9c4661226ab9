"""The models that the plugin offers: metadata read from small files, nothing loaded."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_host import JobDefaults, ModelInfo, ModelLoadFailed, expanded, wan_job_types
from wan_host_wan21.checkpoint import MAX_SUBJECTS, VACE_CHECKPOINT, Checkpoint, Kind, recognise
from wan_host_wan21.hub import cached_folder, parse
from wan_host_wan21.presets import Preset
from wan_host_wan21.settings import CustomModel, Defaults, Wan21Settings
from wan_host_wan21.turbo import find_turbo

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB = 2**20
_WEIGHT_BYTES = {"transformer": 2, "text_encoder": 2, "vae": 4, "image_encoder": 4}
_SHIFTS = {Kind.FLF2V: 16.0, Kind.I2V: 3.0}
"""Shifts of the checkpoints' own schedulers (convert_wan_to_diffusers.py); elsewhere the wire contract's 5."""
_ADVICE = f"the checkpoint {VACE_CHECKPOINT} can: `wan-host models pull wan2.1-vace-1.3b`"
_log = logging.getLogger("wan_host_wan21")


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """A checkpoint of the Wan team."""

    name: str
    repo: str
    kind: Kind
    description: str


OFFICIAL = (
    Official(
        name="wan2.1-vace-1.3b",
        repo=VACE_CHECKPOINT,
        kind=Kind.VACE,
        description="Wan 2.1 VACE 1.3B: text and references to video and image",
    ),
    Official(
        name="wan2.1-t2v-1.3b",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        kind=Kind.T2V,
        description="Wan 2.1 T2V 1.3B: text to video and image",
    ),
)


def wan_defaults(defaults: Defaults | None = None) -> Mapping[str, JobDefaults]:
    """Return the eight job types; without ``defaults``, with the wire contract's: 480x832, 83 frames at 24 a second, dpm++."""
    values = defaults or Defaults()
    base = JobDefaults(
        media="video",
        width=values.width,
        height=values.height,
        frames=values.frames,
        fps=values.fps,
        sample_shift=values.sample_shift,
        sample_solver=values.sample_solver,
    )
    return wan_job_types(
        base,
        base,
        fast_steps=values.fast_steps,
        high_steps=values.high_steps,
        fast_guidance=values.fast_guidance,
        high_guidance=values.high_guidance,
    )


def offered_models(settings: Wan21Settings) -> list[ModelInfo]:
    """Return the official checkpoints found in the models folder, and the table's models.

    What is there but cannot be used is logged and left out, so that one broken folder does not take the others along.
    """
    found: dict[str, Checkpoint] = {}
    models = []
    for official in OFFICIAL:
        checkpoint = _find(settings.models_path, official)
        if checkpoint is not None:
            found[official.name] = checkpoint
            presets = offered_presets(checkpoint.path, settings)
            models.append(describe(official.name, checkpoint, official.description, presets=presets))
    for name, row in settings.models.items():
        try:
            checkpoint = _checkpoint_of(row, found, settings)
        except ModelLoadFailed as error:
            _log.warning("model %s is not offered: %s", name, error)
            continue
        models.append(describe(name, checkpoint, row.description, row, offered_presets(checkpoint.path, settings)))
    return models


def offered_presets(path: Path, settings: Wan21Settings) -> tuple[str, ...]:
    """Return the speed presets of the checkpoint at ``path``, the one for jobs that name none first."""
    try:
        turbo = find_turbo(path, settings.turbo_path)
    except ModelLoadFailed as error:
        _log.warning("the preset turbo is not offered: %s", error)
        turbo = None
    presets = [preset.value for preset in Preset if turbo is not None or preset is not Preset.TURBO]
    return tuple(sorted(presets, key=lambda preset: preset != settings.preset))


def describe(
    name: str,
    checkpoint: Checkpoint,
    description: str,
    row: CustomModel | None = None,
    presets: tuple[str, ...] = (Preset.EXACT.value,),
) -> ModelInfo:
    """Return what the host needs to know of a checkpoint."""
    weights = weights_mib(checkpoint.path)
    remarks = [f"{checkpoint.kind.upper()}, {weights / 1024:.1f} GiB loaded"]
    if checkpoint.random_weights:
        remarks.append("random weights")
    adapters = () if row is None else tuple((adapter.name, adapter.scale) for adapter in row.adapters)
    shift = _SHIFTS.get(checkpoint.kind)
    defaults = Defaults() if row is None else row.defaults
    if shift is not None and "sample_shift" not in defaults.model_fields_set:
        defaults = defaults.model_copy(update={"sample_shift": shift})
    types = wan_defaults(defaults)
    return ModelInfo(
        name=name,
        family="wan",
        runner="wan21",
        path=str(checkpoint.path),
        description=f"{description} ({', '.join(remarks)})".strip(),
        job_types={name: kind for name, kind in types.items() if kind.media == "video" or not checkpoint.animates},
        reference_modes=checkpoint.reference_modes,
        image_to_image=checkpoint.image_to_image,
        max_subject_references=MAX_SUBJECTS if checkpoint.adapter else 0,
        loras=True,
        advice="" if checkpoint.adapter else _ADVICE,
        vram_mib=weights,
        random_weights=checkpoint.random_weights,
        options={"adapters": adapters} if adapters else {},
        presets=presets,
    )


def weights_mib(path: Path) -> int:
    """Return what a checkpoint needs loaded on a GPU: two bytes a parameter, four in the VAE. Reads the files' headers alone."""
    parameters = {part: sum(count_parameters(file) for file in (path / part).glob("*.safetensors")) for part in _WEIGHT_BYTES}
    return int(sum(count * _WEIGHT_BYTES[part] for part, count in parameters.items()) / _MIB)


def count_parameters(file: Path) -> int:
    """Count the elements in a safetensors file: eight bytes of length, then a JSON object with every tensor's shape."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return int(sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        return 0  # loading says what is wrong with the file


def _checkpoint_of(row: CustomModel, found: Mapping[str, Checkpoint], settings: Wan21Settings) -> Checkpoint:
    if row.base:
        if row.base not in found:
            raise ModelLoadFailed(f"its base {row.base} is not there; there are {', '.join(sorted(found)) or 'none'}")
        return found[row.base]
    hub = parse(row.path)
    if hub is None:
        try:
            path = expanded(Path(row.path))
        except ValueError as error:  # ~nobody
            raise ModelLoadFailed(f"{row.path!r} is no path: {error}") from error
        return recognise(settings.models_path / path)
    if not hub.pinned:
        raise ModelLoadFailed(f"{row.path} is not pinned; the revision must be a commit of 40 hex digits")
    pulled = settings.models_path / folder_of(hub.repo, hub.revision)
    whole = (pulled / "model_index.json").is_file()  # it comes last; what a pull that broke off left is passed by
    folder = pulled if whole else cached_folder(hub)
    if folder is None:
        raise ModelLoadFailed(f"{row.path} is not on this machine; `wan-host models pull {row.path}` fetches it")
    return recognise(folder)


def folder_of(repo: str, revision: str | None) -> str:
    """Return the name of the folder that a pulled repository has in the models folder."""
    name = repo.partition("/")[2]
    return name if revision is None else f"{name}@{revision}"


def _find(folder: Path, official: Official) -> Checkpoint | None:
    """Look under the plugin's name and the repository's."""
    for name in (official.name, official.repo.partition("/")[2], official.repo):
        if (folder / name).is_dir():
            try:
                return recognise(folder / name)
            except ModelLoadFailed as error:
                _log.warning("model %s is not offered: %s", official.name, error)
    return None
