"""The models that the plugin offers: metadata read from small files, nothing loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_host import JobDefaults, ModelInfo, ModelLoadFailed, SizeBounds, wan_job_types
from wan_host_wan21.checkpoint import MAX_SUBJECTS, VACE_CHECKPOINT, Checkpoint, Kind, recognise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wan_host_wan21.settings import Wan21Settings

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """A checkpoint of the Wan team. ``weights_mib`` is what it needs loaded: transformer and text encoder bf16, VAE fp32."""

    name: str
    repo: str
    kind: Kind
    shift: float
    description: str
    weights_mib: int


# Parameters: transformer 1.419 B (2.154 B with VACE) and UMT5-XXL 5.681 B in bf16, VAE 126.9 M in fp32.
OFFICIAL = (
    Official(
        name="wan2.1-vace-1.3b",
        repo=VACE_CHECKPOINT,
        kind=Kind.VACE,
        shift=5.0,
        description="Wan 2.1 VACE 1.3B: text and references to video and image",
        weights_mib=int((2 * (2.154e9 + 5.681e9) + 4 * 126.9e6) / _MIB),
    ),
    Official(
        name="wan2.1-t2v-1.3b",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        kind=Kind.T2V,
        shift=5.0,
        description="Wan 2.1 T2V 1.3B: text to video and image",
        weights_mib=int((2 * (1.419e9 + 5.681e9) + 4 * 126.9e6) / _MIB),
    ),
)


def wan_defaults(shift: float = 5.0) -> Mapping[str, JobDefaults]:
    """Return the eight job types with the wire contract's defaults: 480x832, 83 frames at 24 a second, dpm++."""
    return wan_job_types(
        JobDefaults(media="video", sample_shift=shift),
        JobDefaults(media="image", sample_shift=shift),
        fast_steps=25,
        high_steps=50,
        fast_guidance=6.5,
        high_guidance=7.5,
    )


def offered_models(settings: Wan21Settings) -> Iterable[ModelInfo]:
    """Return the official checkpoints found in the models folder, by the plugin's name or by the repository's."""
    folder = settings.models_path
    models = []
    for official in OFFICIAL:
        checkpoint = _find(folder, official)
        if checkpoint is not None:
            models.append(describe(official.name, checkpoint, official))
    return models


def describe(name: str, checkpoint: Checkpoint, official: Official) -> ModelInfo:
    """Return what the host needs to know of a checkpoint."""
    return ModelInfo(
        name=name,
        family="wan",
        runner="wan21",
        path=str(checkpoint.path),
        description=official.description + (" (random weights)" if checkpoint.random_weights else ""),
        job_types=wan_defaults(official.shift),
        reference_modes=checkpoint.reference_modes,
        image_to_image=checkpoint.image_to_image,
        max_subject_references=MAX_SUBJECTS if checkpoint.adapter else 0,
        loras=True,
        bounds=SizeBounds(),
        vram_mib=official.weights_mib,
        random_weights=checkpoint.random_weights,
    )


def _find(folder: Path, official: Official) -> Checkpoint | None:
    """Look under the plugin's name and the repository's; a folder that is incomplete is not offered."""
    for name in (official.name, official.repo.partition("/")[2], official.repo):
        try:
            return recognise(folder / name)
        except ModelLoadFailed:
            continue
    return None
