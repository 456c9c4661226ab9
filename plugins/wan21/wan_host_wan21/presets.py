"""Speed presets: what each of them leaves out of a job's steps, by fixed schedules.

A schedule follows from the number of steps alone, never from what the tensors hold, so a preset gives the same frames for the
same request every time. Steps that are not *computed* reuse what the transformer's blocks did before (``step_cache``); steps
that are not *guided* leave out the pass over the negative prompt, which is half of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

_STEPS_PER_STRIDE, _LONGEST_STRIDE = 20, 5
_FIRST = 0.1


class Preset(StrEnum):
    """How a job trades exactness for speed; chosen by ``config.preset``."""

    EXACT = "exact"
    """No approximation: what a faster kernel changes in the last digits is all that differs from diffusers."""
    FAST = "fast"
    """8-bit linear layers where the GPU has them, and reuse on fixed steps."""
    TURBO = "turbo"
    """A step-distilled adapter: its few steps, no guidance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is done in each step of one clip."""

    computed: tuple[bool, ...]
    guided: tuple[bool, ...]

    def restartable(self, step: int) -> bool:
        """Whether another process can go on after ``step`` steps with the same bits: the next one must reuse none of them."""
        return all(self.computed[step : step + 1])

    def passes(self, *, guidance: bool) -> int:
        """How many times the whole transformer runs."""
        return sum(1 + (guidance and guided) for computed, guided in zip(self.computed, self.guided, strict=True) if computed)


def whole(steps: int) -> Schedule:
    """Return the schedule that leaves nothing out."""
    return Schedule(computed=(True,) * steps, guided=(True,) * steps)


def fast(steps: int) -> Schedule:
    """Return the schedule of ``fast``, chosen on tiny-wan (docs/decisions.md): 8 of 12 steps, 11 of 25, 17 of 50."""
    stride = min(2 + steps // _STEPS_PER_STRIDE, _LONGEST_STRIDE)
    return thinned(steps, first=max(3, round(_FIRST * steps)), stride=stride)


def thinned(steps: int, *, first: int, stride: int, guided: float = 1.0) -> Schedule:
    """Compute the ``first`` steps, every ``stride``-th one after them and the last; guide the first ``guided`` of the steps."""
    computed = tuple(step < first or (step - first) % stride == stride - 1 or step == steps - 1 for step in range(steps))
    return Schedule(computed=computed, guided=tuple(step < math.ceil(steps * guided) for step in range(steps)))
