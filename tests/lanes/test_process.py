"""What a child prints belongs to the host's log."""

from __future__ import annotations

import asyncio
import os

import psutil
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


async def test_a_lane_has_the_hosts_environment_without_what_only_the_host_needs(new_lane, monkeypatch):
    secret = ("UPSTASH_REDIS_REST_TOKEN", "WAN_HOST_QUEUE_URL", "wan_worker_api_key", "SUPABASE_SERVICE_KEY", "RUNPOD_API_KEY")
    needed = ("HF_TOKEN", "HF_HOME", "CUDA_HOME", "WAN_HOST_WAN21_MODELS", "WAN_HOST_DATA_DIR", "SUPABASE_URL", "MY_API_KEY")
    for name in (*secret, *needed):
        monkeypatch.setenv(name, "planted")
    lane = await new_lane()
    there = psutil.Process(lane.state.pid).environ()
    assert {name for name, value in there.items() if value == "planted"} == set(needed)
    assert there["PATH"] == os.environ["PATH"]


async def test_tracebacks_of_hooks_go_to_the_log_in_one_event(new_lane):
    with structlog.testing.capture_logs() as logs:
        lane = await new_lane()
        with pytest.raises(errors.GenerationFailed) as raised:
            await lane.generate("raises", request())
    assert "Traceback" not in str(raised.value)
    (failed,) = [entry for entry in logs if entry["event"] == "lane call failed"]
    assert "in _raises" in failed["traceback"]
    assert failed["job_id"] == "job-1"
