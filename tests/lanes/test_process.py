"""What a child prints belongs to the host's log."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from lane_fakes import request

from wan_host import errors


async def test_output_becomes_events_of_the_log_and_never_raw_text(new_lane, capfd):
    with structlog.testing.capture_logs() as logs:
        lane = await new_lane()
        await lane.generate("noisy", request())
        await lane.generate("good", request())
        await lane.stop()
        await asyncio.sleep(0)
    lines = {entry["line"]: entry for entry in logs if entry["event"] == "lane output"}
    for text in (
        "printed to stdout",
        "printed to stderr",
        "WARNING some.library: a library warns",
        "written without an end of line",
    ):
        assert lines[text]["log_level"] == "info"
        assert lines[text]["lane"] == "lane-0"
    assert lines["10%"]["log_level"] == "debug"
    assert "printed" not in "".join(capfd.readouterr())


async def test_tracebacks_of_hooks_go_to_the_log_in_one_event(new_lane):
    with structlog.testing.capture_logs() as logs:
        lane = await new_lane()
        with pytest.raises(errors.GenerationFailed) as raised:
            await lane.generate("raises", request())
    assert "Traceback" not in str(raised.value)
    (failed,) = [entry for entry in logs if entry["event"] == "lane call failed"]
    assert "in _raises" in failed["traceback"]
    assert failed["job_id"] == "job-1"
