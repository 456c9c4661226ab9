"""Starting, restarting, and saying when that does not work."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from lane_fakes import request, until

from wan_host import errors


async def test_a_first_start_that_fails_says_why(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:broken_hooks")
    with pytest.raises(errors.LaneCrashed, match=r"could not load its plugins.*ImportError: a plugin needs a library"):
        await lane.start()


async def test_a_factory_that_is_not_there_says_so(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:nothing")
    with pytest.raises(errors.LaneCrashed, match="has no attribute 'nothing'"):
        await lane.start()


async def test_options_that_cannot_be_sent_are_named(new_lane):
    lane = await new_lane(started=False, hook_options={"stamp": lambda: None})
    with pytest.raises(errors.LaneCrashed, match=r"could not be started: .*pickle"):
        await lane.start()


async def test_a_child_that_dies_at_start_brings_its_last_words(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:dying_hooks")
    with pytest.raises(errors.LaneCrashed, match="ended with exit status 7; its last lines:\nthe driver is broken"):
        await lane.start()


async def test_a_start_that_takes_too_long_is_ended_and_says_where_it_was(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:slow_hooks", limits={"start": 1.0, "restart_pause": 30.0})
    with pytest.raises(errors.LaneCrashed, match=r"(?s)did not start within 1 s.*in slow_hooks"):
        await lane.start()


async def test_goes_on_trying_after_a_first_start_that_failed(new_lane, tmp_path):
    lane = await new_lane(started=False, hooks="lane_fakes:flaky_hooks", hook_options={"stamp": str(tmp_path / "stamp")})
    with pytest.raises(errors.LaneCrashed):
        await lane.start()
    assert (await lane.generate("good", request())).generation.clips
    assert lane.state.restarts == {"start": 1}


async def test_a_lane_that_never_starts_fails_at_last_and_says_so_at_once(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:dying_hooks", limits={"start_failures": 3})
    with pytest.raises(errors.LaneCrashed):
        await lane.start()
    with pytest.raises(errors.LaneCrashed, match="failed 3 times in a row; next try in 60 s"):
        await lane.generate("good", request())
    state = lane.state
    assert state.status == "failed"
    assert "the driver is broken" in state.failure
    assert state.restarts == {"start": 3}


async def test_a_failed_lane_is_tried_again_later(new_lane, tmp_path):
    lane = await new_lane(
        started=False,
        hooks="lane_fakes:flaky_hooks",
        hook_options={"stamp": str(tmp_path / "stamp")},
        limits={"start_failures": 1, "failed_pause": 0.2},
    )
    with pytest.raises(errors.LaneCrashed):
        await lane.start()
    assert lane.state.status == "failed"
    await until(lambda: lane.state.status == "idle")
    assert lane.state.failure == ""


async def test_a_device_that_kills_every_child_does_not_eat_the_whole_queue(new_lane):
    lane = await new_lane(limits={"start_failures": 3})
    for _ in range(3):
        with pytest.raises(errors.LaneCrashed):
            await lane.generate("sigkill", request())
    async with asyncio.timeout(5):  # the caller hears of the crash first
        while lane.state.status not in ("restarting", "failed"):  # noqa: ASYNC110  # a state has no event
            await asyncio.sleep(0.01)
    with pytest.raises(errors.LaneCrashed, match="3 times in a row"):
        await lane.generate("good", request())


async def test_signals_to_the_whole_group_do_not_end_a_lane(new_lane):
    lane = await new_lane()
    assert os.getpgid(lane.state.pid) == lane.state.pid != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(lane.state.pid, number)
    await lane.generate("good", request())
    assert lane.state.restarts == {}


async def test_a_lane_can_be_stopped_while_it_starts(new_lane):
    lane = await new_lane(started=False, hooks="lane_fakes:slow_hooks")
    starting = asyncio.create_task(lane.start())
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await lane.stop()
    assert time.monotonic() - begun < 2
    with pytest.raises(errors.LaneCrashed):
        await starting


async def test_a_lane_starts_once(new_lane):
    lane = await new_lane()
    with pytest.raises(RuntimeError, match="started before"):
        await lane.start()
