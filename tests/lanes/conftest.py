"""Lanes with fake models. ``lane`` is shared by the tests of a module that leave it whole; ``new_lane`` makes one of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.supervisor import Lane

sys.path.insert(0, str(Path(__file__).parent))  # children find lane_fakes through the host's path


@pytest.fixture
async def new_lane():
    """Make and start lanes with limits of fractions of a second; all are stopped at the end of the test."""
    lanes = []

    async def make(*, started=True, hooks="lane_fakes:hooks", events=None, limits=None, **values):
        lane = Lane(
            name=f"lane-{len(lanes)}",
            device="cpu",
            kind="generate",
            hooks=hooks,
            limits=LaneLimits(**{"start": 20.0, "cancel_grace": 0.5, "restart_pause": 0.01, "stop": 5.0, **(limits or {})}),
            on_event=events.append if events is not None else None,
            **values,
        )
        lanes.append(lane)
        if started:
            await lane.start()
        return lane

    yield make
    for lane in lanes:
        await lane.stop()
