"""The solvers that a payload can name, as diffusers' schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from wan_host import GenerationRequest

TRAIN_TIMESTEPS = 1000


def scheduler_for(request: GenerationRequest) -> Any:
    """Return a new scheduler with the request's solver and shift.

    A checkpoint's own scheduler file is never used: repositories name different classes there, and a scheduler keeps
    state, so every view and every job has its own.
    """
    from diffusers import DPMSolverMultistepScheduler

    from wan_host_wan21.unipc import UniPC

    flow: dict[str, Any] = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "flow_shift": request.sample_shift,
    }
    if request.sample_solver == "unipc":
        return UniPC(**flow)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **flow)


def steps_run(steps: int, strength: float) -> int:
    """Return how many of ``steps`` are run from a source at ``strength``: all at 1, and at least one.

    ``int(steps * strength)`` is what diffusers' video-to-video pipeline runs, and it crashes at 0.
    """
    return min(steps, max(1, int(steps * strength)))


class LateStart:
    """A scheduler whose first timesteps are left out, for pipelines that always run all of them (VACE).

    The schedule inside stays whole, because the solvers look up sigmas and their last steps in it.
    """

    def __init__(self, scheduler: Any, skipped: int) -> None:
        """Leave out the first ``skipped`` timesteps."""
        self._scheduler, self._skipped = scheduler, skipped

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps that are run."""
        return self._scheduler.timesteps[self._skipped :]

    def __getattr__(self, name: str) -> Any:
        """Everything else is the scheduler's own."""
        return getattr(self._scheduler, name)
