"""Step-distilled adapters: how one is recognised, and the few steps that it was made for.

An adapter says its own steps in the header of its file (``wan_host_turbo``, a JSON object with ``sampler`` and ``sigmas``).
Files without one are recognised by their names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wan_host import ModelLoadFailed

if TYPE_CHECKING:
    from pathlib import Path

    import torch

HEADER = "wan_host_turbo"
FILE = "turbo.safetensors"
"""The name of a checkpoint's own turbo adapter, beside its model_index.json."""
Sampler = Literal["euler", "lcm"]
_SAMPLERS = ("euler", "lcm")
_LENGTH_BYTES = 8
_MOST_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Turbo:
    """A step-distilled adapter. ``sigmas``: the noise at each step's beginning, falling, the last step ends at 0.

    ``euler`` goes along the predicted velocity; ``lcm`` goes all the way to the clean latents and noises them anew for the next
    step, as consistency and distribution-matching distillation train it.
    """

    path: Path
    sampler: Sampler
    sigmas: tuple[float, ...]


def read_turbo(path: Path) -> Turbo:
    """Return what a safetensors file is. Raise ModelLoadFailed where it does not say, or says what cannot be."""
    header = _header(path)
    if header is not None:
        return Turbo(path=path, **_values(path, header))
    if "causvid" in path.name.lower():
        # The adapter's own page names 4 to 12 steps without guidance; shift 8 is what the 1.3B model was distilled with.
        return Turbo(path=path, sampler="euler", sigmas=shifted(8, 8.0))
    raise ModelLoadFailed(f"{path} is no step-distilled adapter: its header has no {HEADER}, and its name is not known")


def find_turbo(folder: Path, named: Path | None) -> Turbo | None:
    """Return a checkpoint's own adapter, else the one that the settings name; None where there is neither."""
    own = folder / FILE
    if own.is_file():
        return read_turbo(own)
    return None if named is None else read_turbo(named)


def shifted(steps: int, shift: float) -> tuple[float, ...]:
    """Return the sigmas of evenly spaced steps, moved towards noise by a flow shift."""
    even = (1 - step / steps for step in range(steps))
    return tuple(shift * sigma / (1 + (shift - 1) * sigma) for sigma in even)


def scheduler_for(turbo: Turbo, generator: torch.Generator) -> Any:
    """Return a scheduler that runs exactly the adapter's steps; ``generator`` draws what ``lcm`` noises with."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

    if turbo.sampler == "euler":
        return FewSteps(FlowMatchEulerDiscreteScheduler(), turbo.sigmas)
    return FewSteps(FlowMatchLCMScheduler(), turbo.sigmas, generator=generator)


class FewSteps:
    """One of diffusers' flow-matching schedulers with given sigmas, for pipelines that only say how many steps they want."""

    def __init__(self, scheduler: Any, sigmas: tuple[float, ...], **stepping: Any) -> None:
        """Run ``sigmas``; ``stepping`` goes to every ``step``."""
        self._scheduler, self._given, self._stepping = scheduler, sigmas, stepping

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        """Make the schedule; the number of steps is the adapter's."""
        if steps != len(self._given):
            raise ValueError(f"this adapter runs {len(self._given)} steps, not {steps}")
        self._scheduler.set_timesteps(sigmas=list(self._given), device=device)
        self._scheduler.sigmas = self._scheduler.sigmas.to("cpu")  # read step by step on the host

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **options: Any) -> Any:
        """Take one step."""
        return self._scheduler.step(prediction, timestep, sample, **self._stepping, **options)

    def add_noise(self, source: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return ``source`` with the noise of the first of ``timesteps``."""
        sigma = timesteps[0] / self._scheduler.config.num_train_timesteps
        return sigma * noise + (1 - sigma) * source

    def __getattr__(self, name: str) -> Any:
        """Everything else is the scheduler's own."""
        return getattr(self._scheduler, name)


def _header(path: Path) -> dict[str, Any] | None:
    """Return the object under `HEADER` in a safetensors file's metadata; the tensors are not read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
        found = header.get("__metadata__", {}).get(HEADER)
        return None if found is None else dict(json.loads(found))
    except (OSError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise ModelLoadFailed(f"{path} cannot be read as safetensors: {error}") from error


def _values(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    sampler, sigmas = header.get("sampler"), header.get("sigmas")
    if sampler not in _SAMPLERS:
        raise ModelLoadFailed(f"{path}: {HEADER}.sampler is {sampler!r}; it must be one of {', '.join(_SAMPLERS)}")
    numbers = isinstance(sigmas, list) and all(isinstance(sigma, int | float) for sigma in sigmas)
    if not numbers or not 1 <= len(sigmas) <= _MOST_STEPS or not _falls(sigmas):
        raise ModelLoadFailed(
            f"{path}: {HEADER}.sigmas is {sigmas!r}; it must be 1 to {_MOST_STEPS} numbers that fall from 1 to above 0"
        )
    return {"sampler": sampler, "sigmas": tuple(float(sigma) for sigma in sigmas)}


def _falls(sigmas: list[float]) -> bool:
    return all(before > after for before, after in zip([1.0 + 1e-9, *sigmas], [*sigmas, 0.0], strict=True))
