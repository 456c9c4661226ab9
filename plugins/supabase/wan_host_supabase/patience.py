"""How often a fault is borne, and the pauses between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from wan_host_supabase.answers import Passing

if TYPE_CHECKING:
    from wan_host import HookContext, WanHostError

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_SLICE = 0.1


class Patience:
    """Bears ``tries`` faults in a row; the last one raises ``give_up`` with what happened.

    The host goes on after that, with longer pauses: this one only spares it the short faults.
    """

    def __init__(self, context: HookContext, tries: int, give_up: Callable[[str], WanHostError]) -> None:
        """``context`` ends every pause at once when the work is no longer wanted."""
        self._context, self._tries, self._give_up = context, tries, give_up
        self._faults = 0

    @classmethod
    def like(cls, other: Patience) -> Patience:
        """Return one of the same kind that counts for itself."""
        return cls(other._context, other._tries, other._give_up)

    def check(self) -> None:
        """Raise what the context raises when the work is no longer wanted."""
        self._context.check()

    def progress(self) -> None:
        """Forget the faults so far: something moved."""
        self._faults = 0

    def fault(self, error: Passing) -> None:
        """Wait a moment, or raise when there were too many."""
        self.check()
        self._faults += 1
        if self._faults >= self._tries:
            raise self._give_up(str(error)) from None
        pause(self._context, max(backoff(self._faults - 1), min(error.retry_after, _LONGEST_PAUSE)))

    def persist(self, work: Callable[[], T]) -> T:
        """Do ``work`` until it raises no Passing."""
        while True:
            self.check()
            try:
                return work()
            except Passing as error:
                self.fault(error)


def backoff(faults: int, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> float:
    """Return seconds to wait after so many earlier faults, spread so that workers do not come back all at once."""
    return min(longest, first * 2.0 ** min(faults, 30)) * random.uniform(0.75, 1.25)  # noqa: S311  # no secret


def pause(context: HookContext, seconds: float) -> None:
    """Sleep; raise what ``context.check`` raises as soon as it does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        context.check()
        time.sleep(min(left, _SLICE))
    context.check()
