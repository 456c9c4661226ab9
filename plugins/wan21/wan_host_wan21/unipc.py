"""UniPC without a wait for the device: diffusers' own copies sigmas there and solves a system of two there at every step.

Each of these lets the queue of kernels run empty (0.42.1, scheduling_unipc_multistep.py:886, 1021, 1078).
Its DPM-Solver++ has none.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch  # noqa: TID253  # this module is imported with a loaded model
from diffusers import UniPCMultistepScheduler  # noqa: TID253  # as above

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "solver_order": (1, 2),
    "solver_type": ("bh2",),
    "predict_x0": (True,),
    "solver_p": (None,),
    "prediction_type": ("flow_prediction",),
    "use_flow_sigmas": (True,),
}
"""What the options may be that change the solver's arithmetic."""


class UniPC(UniPCMultistepScheduler):
    """diffusers' UniPC of order 2 at most for flow prediction, by the same arithmetic, with its coefficients on the host.

    They are tensors without dimensions on the CPU, which kernels of any device take as numbers.
    """

    @wraps(UniPCMultistepScheduler.__init__)  # from_config reads the signature
    def __init__(self, *given: Any, **options: Any) -> None:
        """Take diffusers' options. Raise ValueError for those that ask for another arithmetic."""
        super().__init__(*given, **options)
        for field, known in _COMPUTED.items():
            value = self.config[field]
            if value not in known:
                raise ValueError(f"{field}={value!r}; this UniPC computes only {' and '.join(map(repr, known))}")

    def multistep_uni_p_bh_update(self, model_output: torch.Tensor, *, sample: torch.Tensor, order: int) -> torch.Tensor:  # noqa: ARG002  # diffusers' signature
        """Return the sample at the next sigma."""
        newest = self.model_outputs[-1]
        ratio, weight, h, known = self._between(self.step_index, self.step_index + 1)
        made = ratio * sample - weight * newest
        if order == 1:
            return made
        change = (self.model_outputs[-2] - newest) / self._distance(self.step_index - 1, known, h)
        return made - weight * (0.5 * change)

    def multistep_uni_c_bh_update(
        self, this_model_output: torch.Tensor, *, last_sample: torch.Tensor, this_sample: torch.Tensor, order: int
    ) -> torch.Tensor:
        """Return the sample at this sigma, corrected by what the model has made of it."""
        del this_sample
        before = self.model_outputs[-1]
        ratio, weight, h, known = self._between(self.step_index - 1, self.step_index)
        made, last_change = ratio * last_sample - weight * before, this_model_output - before
        if order == 1:
            return made - weight * (0.5 * last_change)
        distance = self._distance(self.step_index - 2, known, h)
        change = (self.model_outputs[-2] - before) / distance
        first, second = _corrector(distance, -h)
        return made - weight * (first * change + second * last_change)

    def _between(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weights of sample and prediction for a step between two sigmas, its length, and where it starts."""
        from_lambda, to_lambda = self._lambda(start), self._lambda(end)
        length = to_lambda - from_lambda
        weight = (1 - self.sigmas[end]) * torch.expm1(-length)
        return self.sigmas[end] / self.sigmas[start], weight, length, from_lambda

    def _distance(self, index: int, known: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Return how far an older sigma is from a step's start, in lengths of the step."""
        return (self._lambda(index) - known) / length

    def _lambda(self, index: int) -> torch.Tensor:
        return torch.log(1 - self.sigmas[index]) - torch.log(self.sigmas[index])


def _corrector(distance: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return the corrector's two weights: those with which a step of ``length`` is right to the third order."""
    places = torch.stack([distance, torch.ones(())])
    grown = torch.expm1(length)
    first = grown / length - 1
    second = first / length - 1 / 2
    wanted = torch.stack([first / grown, second * 2 / grown])
    return torch.linalg.solve(torch.stack([torch.pow(places, 0), torch.pow(places, 1)]), wanted)
