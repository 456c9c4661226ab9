"""How many jobs a worker should claim at this moment."""

from __future__ import annotations

from collections.abc import Sequence

from wan_host.run import Run

_ENCODING_PER_LANE = 4
"""Clips that may be encoding at a time: their frames stand in memory."""
_BACKLOG = 24
"""Runs that may be encoding and publishing at a time before no more are claimed; at least as many as may encode."""
_ENCODING = frozenset({"encode", "postprocess"})
_CLIPS = 6
"""The most that a job makes; those that are encoded while the lane works have a thread each."""


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


def calls_of_a_stage(lanes: int) -> int:
    """Return how many calls of one stage may run at a time: as many as ever come, so that no finished work is turned away.

    After the encoding runs at which claims stop there come those that are in a lane by then, and those that wait for one.
    """
    return _CLIPS * (_ENCODING_PER_LANE + 2) * lanes
