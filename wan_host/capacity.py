"""How many jobs a worker should claim at this moment."""

from __future__ import annotations

from collections.abc import Sequence

from wan_host.run import Run

_ENCODING_PER_LANE = 4
"""Clips that may be encoding at a time: their frames stand in memory."""
_BACKLOG = 24
"""Runs that may be encoding and publishing at a time, fewer than the threads of a stage; at least as many as may encode."""
_ENCODING = frozenset({"encode", "postprocess"})


def jobs_to_claim(runs: Sequence[Run], *, lanes: int, prefetch_seconds: float) -> int:
    """Return how many: one for every lane that is free or about to be, none where too much waits to be published.

    A lane is about to be free when the job in it is ``prefetch_seconds`` from its end. No job is claimed before that, because it
    would wait here while another worker may be idle.
    """
    left = [run.lane_seconds_left() for run in runs]
    past = [run for run, seconds in zip(runs, left, strict=True) if seconds == 0]
    if len(past) >= max(_BACKLOG, _ENCODING_PER_LANE * lanes):
        return 0
    if sum(run.stage in _ENCODING for run in past) >= _ENCODING_PER_LANE * lanes:
        return 0
    staying = sum(seconds is None or seconds > prefetch_seconds for seconds in left)
    return max(0, lanes - staying)
