"""The solvers that a payload can name, as diffusers' schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_host import GenerationRequest

TRAIN_TIMESTEPS = 1000


def scheduler_for(request: GenerationRequest) -> Any:
    """Return a new scheduler with the request's solver and shift.

    A checkpoint's own scheduler file is never used: repositories name different classes there, and a scheduler keeps
    state, so every view and every job has its own.
    """
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    flow: dict[str, Any] = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "flow_shift": request.sample_shift,
    }
    if request.sample_solver == "unipc":
        return UniPCMultistepScheduler(**flow)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **flow)
