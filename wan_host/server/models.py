"""The route of the models: what can be submitted to this worker, and what a job that leaves a value out gets."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from wan_host.model import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, Solver
from wan_host.server.access import TheWorker

__all__ = ["router"]

router = APIRouter(tags=["jobs"])


class ModelAnswer(BaseModel):
    """A model that generates. ``job_types`` has the defaults of every type; image jobs do ``single`` if ``image_to_image``."""

    name: str
    family: str
    description: str
    loaded: bool
    job_types: dict[str, JobDefaults]
    reference_modes: list[ReferenceMode]
    image_to_image: bool
    max_subject_references: int
    loras: bool
    solvers: list[Solver]
    presets: list[str]
    bounds: SizeBounds


class ModelsAnswer(BaseModel):
    """The models by name; ``default`` is for jobs that name none, and the limits are for all jobs."""

    default: str | None
    max_prompt_characters: int
    max_entry_bytes: int
    models: list[ModelAnswer]


@router.get("/models")
async def models(worker: TheWorker) -> ModelsAnswer:
    """List the models that this worker's plugins offer."""
    settings, registry = worker.settings, worker.hooks.registry
    loaded = {name for state in worker.pool.states() for name in state.loaded}
    found = sorted(registry.models.values(), key=lambda model: model.name)
    return ModelsAnswer(
        default=registry.default_model(settings.model),
        max_prompt_characters=settings.max_prompt_characters,
        max_entry_bytes=settings.max_entry_bytes,
        models=[_answer(model, loaded=model.name in loaded) for model in found if model.kind == "generate"],
    )


def _answer(model: ModelInfo, *, loaded: bool) -> ModelAnswer:
    return ModelAnswer(
        name=model.name,
        family=model.family,
        description=model.description,
        loaded=loaded,
        job_types=dict(model.job_types),
        reference_modes=[mode for mode in ReferenceMode if mode in model.reference_modes],
        image_to_image=model.image_to_image,
        max_subject_references=model.max_subject_references,
        loras=model.loras,
        solvers=sorted(model.solvers),
        presets=list(model.presets) or ["exact"],
        bounds=model.bounds,
    )
