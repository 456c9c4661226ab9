"""Speed presets: what each of them leaves out of a job's steps, by fixed schedules.

A schedule follows from the number of steps alone, never from what the tensors hold, so a preset gives the same frames for the
same request every time. Steps that are not *computed* reuse what the transformer's blocks did before (``step_cache``); steps
that are not *guided* leave out the pass over the negative prompt, which is half of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

POINTS = 2
"""Computed steps that one which is not computed is drawn through."""


class Preset(StrEnum):
    """How a job trades exactness for speed; chosen by ``config.preset``."""

    EXACT = "exact"
    """No approximation: what a faster kernel changes in the last digits is all that differs from diffusers."""
    FAST = "fast"
    """8-bit linear layers where the GPU has them, reuse on fixed steps, guidance where it matters."""
    TURBO = "turbo"
    """A step-distilled adapter: its few steps, no guidance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is done in each step of one clip. ``sigmas`` has one value more than there are steps."""

    computed: tuple[bool, ...]
    guided: tuple[bool, ...]
    sigmas: tuple[float, ...]

    def restartable(self, step: int) -> bool:
        """Whether another process can go on after ``step`` steps with the same bits: the rest must need nothing of those before.

        A step that is not computed needs the last two that were (``step_cache``).
        """
        fresh = 0
        for computed in self.computed[step:]:
            if not computed and fresh < POINTS:
                return False
            fresh += computed
        return True

    def passes(self, *, guidance: bool) -> int:
        """How many times the whole transformer runs."""
        return sum(1 + (guidance and guided) for computed, guided in zip(self.computed, self.guided, strict=True) if computed)


def whole(sigmas: tuple[float, ...]) -> Schedule:
    """Return the schedule that leaves nothing out."""
    steps = len(sigmas) - 1
    return Schedule(computed=(True,) * steps, guided=(True,) * steps, sigmas=sigmas)


def fast(sigmas: tuple[float, ...]) -> Schedule:
    """Return the schedule of ``fast``, chosen on tiny-wan (docs/decisions.md)."""
    steps = len(sigmas) - 1
    return thinned(sigmas, first=max(2, round(0.2 * steps)), stride=2, guided=0.6)


def thinned(sigmas: tuple[float, ...], *, first: int, stride: int, guided: float) -> Schedule:
    """Compute the ``first`` steps, every ``stride``-th one after them and the last; guide the first ``guided`` of the steps."""
    steps = len(sigmas) - 1
    computed = tuple(step < first or (step - first) % stride == stride - 1 or step == steps - 1 for step in range(steps))
    with_guidance = -(-steps * guided // 1)
    return Schedule(computed=computed, guided=tuple(step < with_guidance for step in range(steps)), sigmas=sigmas)
