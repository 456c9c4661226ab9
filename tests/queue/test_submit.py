"""What `wan-host submit` does with jobs that the queue knows, and with those that it does not know yet."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.queue.entries import job
from wan_host.batch import read_batch
from wan_host.cli import submit
from wan_host.errors import InvalidJob
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
    for _ in range(500):
        if watching.done() or await queue.jobs():
            break
        await asyncio.sleep(0.01)
    assert await queue.cancel("a") == "cancelled"
    assert (await asyncio.wait_for(watching, 5))["a"].status == "cancelled"


async def test_a_cancelled_job_of_a_batch_runs_again(queue, settings):
    jobs = batch(job("cancelled", user_id="u"), job("waits", user_id="u"))
    await submit._submit(jobs, settings, wait=False)
    assert await queue.cancel("cancelled") == "cancelled"
    await submit._submit(jobs, settings, wait=False)
    poll = await queue.poll(claims=3)
    assert {claim.job_id: claim.payload for claim in poll.claims} == {item.id: item.text for item in jobs}
    assert await queue.due_reports() == []


async def test_another_job_under_the_id_of_a_cancelled_one_is_refused(queue, settings):
    await submit._submit(batch(job("a", user_id="u")), settings, wait=False)
    await queue.cancel("a")
    with pytest.raises(InvalidJob, match=r"another job of that id \(cancelled\)"):
        await submit._submit(batch(job("a", user_id="u", prompt="another")), settings, wait=False)
    assert (await queue.job("a")).status == "cancelled"
