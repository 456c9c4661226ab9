"""Going on from where an earlier attempt got to: what is saved between steps, and a schedule that begins in its middle."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host import Checkpoint, Clip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

_FRAMES, _LATENTS, _GENERATOR = "frames.", "latents", "generator"
_SOLVER = "solver."
_LISTS = ("model_outputs", "timestep_list")
_TENSORS = ("last_sample",)
_NUMBERS = ("lower_order_nums", "this_order", "_step_index")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """The middle of a clip: ``done`` of its steps are made. ``solver`` is the scheduler's state, tensors and numbers by name."""

    done: int
    latents: torch.Tensor
    generator: torch.Tensor
    solver: Mapping[str, Any]

    def schedule(self, scheduler: Any) -> ResumedSchedule:
        """Return a new scheduler that goes on from here."""
        return ResumedSchedule(scheduler, self.solver)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resumed:
    """What a job goes on from: its finished clips, and the start of the next one, None where that begins anew."""

    clips: tuple[Clip, ...] = ()
    start: Start | None = None


class ResumedSchedule:
    """A scheduler of which some timesteps have been run already, by another process.

    A pipeline calls ``set_timesteps`` before its loop, which makes the schedule anew and forgets the state: it is put back then.
    """

    def __init__(self, scheduler: Any, state: Mapping[str, Any]) -> None:
        """``state`` as `solver_state` gave it."""
        self._scheduler, self._state = scheduler, state

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """Make the schedule and put the state back."""
        self._scheduler.set_timesteps(*args, **options)
        device = self._scheduler.timesteps.device
        for name in _LISTS:
            if hasattr(self._scheduler, name):
                slots = range(len(getattr(self._scheduler, name)))
                setattr(self._scheduler, name, [_on(self._state.get(f"{name}.{slot}"), device) for slot in slots])
        for name in (*_TENSORS, *_NUMBERS):
            if name in self._state:
                setattr(self._scheduler, name, _on(self._state[name], device))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: the state knows the index."""

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps that are still to be run."""
        return self._scheduler.timesteps[self._state["_step_index"] :]

    def __getattr__(self, name: str) -> Any:
        """Everything else is the scheduler's own."""
        return getattr(self._scheduler, name)


def made_with(weights: str, adapters: str, ways: Mapping[str, Any]) -> dict[str, str]:
    """Return what the bits of a clip depend on beside the request, the model and the device.

    ``weights``: fp8 or exact; ``adapters``: the digest of those that are in, whose files may be others at the next attempt;
    ``ways``: how the transformer and the decoder, which makes the finished clips of a job of several, compute, as reports say it.
    """
    import diffusers
    import torch

    return {
        "wan21": importlib.metadata.version("wan-host-wan21"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "weights": weights,
        "adapters": adapters,
        **{name: str(value) for name, value in ways.items()},
    }


def solver_state(scheduler: Any) -> dict[str, Any]:
    """Return what a multistep solver remembers between steps, by name; what it will not look at again is left out."""
    state: dict[str, Any] = {name: getattr(scheduler, name) for name in _NUMBERS if getattr(scheduler, name, None) is not None}
    corrects = getattr(scheduler, "last_sample", None) is not None
    for name in _LISTS:
        for slot, value in enumerate(getattr(scheduler, name, ())):
            if value is not None and (corrects or slot > 0):  # only UniPC's corrector reads the oldest once more
                state[f"{name}.{slot}"] = value
    if corrects:
        state["last_sample"] = scheduler.last_sample
    return state


def save(
    *, step: int, done: int, clips: Sequence[Clip], latents: torch.Tensor, generator: torch.Generator, scheduler: Any
) -> Checkpoint:
    """Return a checkpoint: ``done`` steps of the clip after ``clips`` are made, ``step`` of the whole job."""
    import torch

    state = solver_state(scheduler)
    solver = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    tensors = {_LATENTS: latents} | {f"{_SOLVER}{name}": value for name, value in solver.items()}
    # numpy has no bfloat16; float32 holds every number of it.
    narrow = [name for name, value in tensors.items() if value.dtype is torch.bfloat16]
    arrays = {name: (value.float() if name in narrow else value).detach().cpu().numpy() for name, value in tensors.items()}
    arrays[_GENERATOR] = generator.get_state().numpy()
    arrays |= {f"{_FRAMES}{index}": clip.frames for index, clip in enumerate(clips)}
    values = {
        "done": done,
        "seeds": [clip.seed for clip in clips],
        "solver": {name: int(value) for name, value in state.items() if name not in solver},
        "bfloat16": narrow,
    }
    return Checkpoint(step=step, arrays=arrays, values=values)


def restore(checkpoint: Checkpoint | None) -> Resumed:
    """Return what a checkpoint of `save` holds; without one, nothing is made yet."""
    if checkpoint is None:
        return Resumed()
    import torch

    arrays, values = checkpoint.arrays, checkpoint.values

    def tensor(name: str) -> torch.Tensor:
        found = torch.from_numpy(arrays[name].copy())
        return found.bfloat16() if name in values["bfloat16"] else found

    tensors = {name.removeprefix(_SOLVER): tensor(name) for name in arrays if name.startswith(_SOLVER)}
    clips = tuple(Clip(frames=arrays[f"{_FRAMES}{index}"].copy(), seed=seed) for index, seed in enumerate(values["seeds"]))
    start = Start(
        done=values["done"],
        latents=tensor(_LATENTS),
        generator=tensor(_GENERATOR),
        solver=tensors | values["solver"],
    )
    return Resumed(clips=clips, start=start)


def _on(value: Any, device: torch.device) -> Any:
    """Return a saved value where its schedule is: numbers as they are."""
    import torch

    return value.to(device) if isinstance(value, torch.Tensor) else value
