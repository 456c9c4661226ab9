"""What `wan-host submit` does with jobs that the queue knows, and with those that it does not know yet."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.queue.entries import job
from wan_host.batch import read_batch
from wan_host.cli import submit
from wan_host.settings import Settings


@pytest.fixture
def settings(server_url, name, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.01)
    return Settings(queue_url=server_url, queue_name=name, data_dir=tmp_path)


def batch(*entries):
    return read_batch(json.dumps([json.loads(entry) for entry in entries]), max_bytes=1_000_000).jobs


async def test_a_job_that_nobody_has_taken_in_yet_is_waited_for(queue, settings, monkeypatch):
    asked = []

    async def take_in(of):
        asked.append(of)
        if len(asked) > 2:
            await of.poll(claims=0)

    monkeypatch.setattr(type(queue), "take_in", take_in)
    watching = asyncio.create_task(submit._submit(batch(job("a", user_id="u")), settings, wait=True))
    while not await queue.jobs() and not watching.done():
        await asyncio.sleep(0.01)
    await queue.cancel("a")
    assert (await asyncio.wait_for(watching, 5))["a"].status == "cancelled"
