"""Every key is in the queue's own slot and has an end."""

from __future__ import annotations

import json

import pytest

from tests.queue.entries import REPORT, claimed, job
from wan_host.errors import SettingsError
from wan_host.queue.keys import RETENTION_SECONDS, checked_name

DAY = 86_400


async def use_everything(queue, redis, name):
    """Leave a job in every state behind."""
    finished = await claimed(queue, "published")
    await queue.start(finished)
    await queue.finish(finished, status="published", report=REPORT, result={"x": 1})
    failed = await claimed(queue, "failed", priority=9)
    await queue.finish(failed, status="failed", report=REPORT, dead_letter="test")
    await queue.release(await claimed(queue, "delayed", priority=1), reason="test", defer=60)
    held = await claimed(queue, "held", priority=2)
    await queue.start(held)
    await queue.renew([held], {"held": {"step": 1}}, worker={"device": "cpu"})
    await queue.cancel("held")
    await redis.rpush(name, "poison", job("waiting"), job("waiting"))
    await queue.poll(claims=0, worker={"device": "cpu"})


async def test_every_key_but_the_producers_list_has_an_end_and_is_in_one_slot(queue, redis, name):
    await use_everything(queue, redis, name)
    await redis.rpush(f"{{{name}}}:intake", *(job(f"j{index}") for index in range(100)))
    await queue.poll(claims=0)
    keys = [key async for key in redis.scan_iter(f"*{name}*") if name in (key, key[1:].split("}")[0])]
    assert len(keys) > 20
    for key in keys:
        assert key.startswith(f"{{{name}}}:"), key
        assert 0 < await redis.ttl(key) <= 4 * RETENTION_SECONDS, key


async def test_a_producer_that_is_alone_leaves_nothing_for_ever_but_its_entry(queue, redis, name):
    await queue.push(job("a"))
    assert await redis.ttl(f"{{{name}}}:meta") > 0


@pytest.mark.parametrize(
    ("job_id", "days"),
    [("published", 7), ("failed", 7), ("delayed", 28), ("held", 28), ("waiting", 28)],
)
async def test_a_job_is_kept_for_a_week_after_its_end_and_four_while_it_waits(job_id, days, queue, redis, name):
    await use_everything(queue, redis, name)
    assert days * DAY - 60 < await redis.ttl(f"{{{name}}}:job:{job_id}") <= days * DAY


async def test_what_is_in_use_is_prolonged_by_polling(queue, redis, name):
    await use_everything(queue, redis, name)
    for key in ("stream:0", "jobs", "meta"):
        await redis.expire(f"{{{name}}}:{key}", 100)
    await redis.hset(f"{{{name}}}:meta", "touched", 0)
    await queue.poll(claims=0)
    for key in ("stream:0", "jobs", "meta"):
        assert await redis.ttl(f"{{{name}}}:{key}") > DAY


async def test_consumers_of_workers_that_are_long_gone_are_removed(open_, redis, name):
    for index in range(3):
        queue = await open_(f"w{index}")
        await queue.finish(await claimed(queue, f"j{index}"), status="failed", report=None)
    assert len(await redis.xinfo_consumers(f"{{{name}}}:stream:0", "workers")) == 3
    await redis.hset(f"{{{name}}}:meta", "touched", 0)
    await queue.poll(claims=0)
    assert len(await redis.xinfo_consumers(f"{{{name}}}:stream:0", "workers")) == 3  # idle for less than a day


async def test_a_large_payload_goes_when_its_job_is_published(queue):
    claim = await claimed(queue, extra="x" * 20_000)
    await queue.finish(claim, status="published", report=REPORT)
    kept = (await queue.job("a")).payload
    assert json.loads(kept) == {"type": "video_fast", "prompt": "a red circle", "config": {}}
    assert [state.payload for state in await queue.jobs()] == [kept]


async def test_of_a_payload_with_pictures_the_rest_is_kept_when_its_job_is_published(queue):
    picture = "data:image/png;base64," + "A" * 20_000
    claim = await claimed(queue, user_id="ü", config={"first_frame": picture, "frames": 17, "guidance_scale": 6.5}, metadata=None)
    before = (await queue.states(["a"]))["a"].digest
    await queue.finish(claim, status="published", report=REPORT)
    assert (await queue.states(["a"]))["a"].digest == before, "who pushes it again is told that it is the same job"
    kept = json.loads((await queue.job("a")).payload)
    assert kept["config"] == {"first_frame": "data:image/png... (20022 characters)", "frames": 17, "guidance_scale": 6.5}
    assert (kept["id"], kept["prompt"], kept["user_id"], kept["metadata"]) == ("a", "a red circle", "ü", None)


@pytest.mark.parametrize("name", ["", "a b", "{a}", "a\nb", "x" * 101])
def test_a_name_that_would_leave_the_slot_is_refused(name):
    with pytest.raises(SettingsError, match="queue name"):
        checked_name(name)
