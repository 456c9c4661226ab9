"""Users take turns, where a worker asks for it: by a bounded choice inside the poll."""

from __future__ import annotations

import json

import pytest

from tests.queue.entries import claim_ids, job


async def push_all(redis, name, jobs):
    """Push (user, id) pairs as producers do."""
    await redis.rpush(name, *(job(job_id, user_id=user) for user, job_id in jobs))


async def read_long_ago(redis, name):
    """Let all that was read from the stream be read eleven minutes ago, and the next poll tidy."""
    stream = f"{{{name}}}:stream:0"
    entries = [row["message_id"] for row in await redis.xpending_range(stream, "workers", "-", "+", 10_000)]
    if entries:
        await redis.xclaim(stream, "workers", "w1", 0, entries, idle=700_000)
    await redis.hset(f"{{{name}}}:meta", "touched", "1")


async def drain(queue, count):
    return [job_id for _ in range(count) for job_id in await claim_ids(queue)]


def backlog(user, count):
    return [(user, f"{user}-{index:03}") for index in range(count)]


async def test_without_the_setting_the_oldest_is_first_whoever_sent_it(queue, redis, name):
    await push_all(redis, name, [*backlog("ann", 5), *backlog("bob", 2)])
    assert await drain(queue, 7) == [job_id for _, job_id in (*backlog("ann", 5), *backlog("bob", 2))]


async def test_users_take_turns_and_each_ones_oldest_is_first(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, [*backlog("ann", 5), *backlog("bob", 2), *backlog("cyd", 1)])
    assert await drain(queue, 8) == ["ann-000", "bob-000", "cyd-000", "ann-001", "bob-001", "ann-002", "ann-003", "ann-004"]


async def test_one_who_comes_late_is_next_and_gets_nothing_for_having_waited(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, backlog("ann", 10))
    assert await drain(queue, 4) == ["ann-000", "ann-001", "ann-002", "ann-003"]
    await push_all(redis, name, backlog("bob", 4))
    assert await drain(queue, 6) == ["ann-004", "bob-000", "ann-005", "bob-001", "ann-006", "bob-002"]


async def test_a_backlog_of_thousands_delays_another_user_by_few_jobs(open_, redis, name):
    queue = await open_(fair_users=True, moved_a_poll=5000)
    await push_all(redis, name, [*backlog("ann", 2000), *backlog("bob", 1)])
    assert "bob-000" in await drain(queue, 6)


async def test_a_priority_is_worth_more_than_a_turn(open_, redis, name):
    queue = await open_(fair_users=True)
    await redis.rpush(name, job("a1", user_id="ann", priority=5), job("a2", user_id="ann", priority=5), job("b1", user_id="bob"))
    assert await drain(queue, 3) == ["a1", "a2", "b1"]


async def test_one_worker_that_asks_for_it_is_enough_and_none_is_lost_when_it_leaves(open_, redis, name):
    asking, other = await open_("w1", fair_users=True), await open_("w2")
    await push_all(redis, name, [*backlog("ann", 3), *backlog("bob", 3)])
    assert await claim_ids(asking) == ["ann-000"]
    assert await drain(other, 2) == ["bob-000", "ann-001"]
    await redis.hset(f"{{{name}}}:meta", "fair", "1")  # it asked long ago
    await push_all(redis, name, [("cyd", "cyd-000")])
    assert sorted(await drain(other, 4)) == ["ann-002", "bob-001", "bob-002", "cyd-000"]
    assert await claim_ids(other) == []


async def test_what_is_cancelled_or_retried_while_it_waits_for_its_turn_runs_as_often_as_it_should(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, backlog("ann", 4))
    assert await claim_ids(queue) == ["ann-000"]
    assert await queue.cancel("ann-001") == "cancelled"
    assert await queue.cancel("ann-002") == "cancelled"
    assert await queue.retry("ann-002")
    assert await drain(queue, 4) == ["ann-003", "ann-002"]


async def test_a_users_jobs_keep_their_order_however_many_come_in_one_moment(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, [*backlog("ann", 25), *backlog("a", 3), *backlog("ann-0", 3)])
    order = await drain(queue, 31)
    for user, count in (("ann", 25), ("a", 3), ("ann-0", 3)):
        mine = [job_id for job_id in order if job_id.rpartition("-")[0] == user]
        assert mine == [job_id for _, job_id in backlog(user, count)]
    assert order[:6] == ["ann-000", "a-000", "ann-0-000", "ann-001", "a-001", "ann-0-001"]


async def test_cancelled_jobs_cost_their_user_no_turns(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, [*backlog("ann", 8), *backlog("bob", 5)])
    assert await claim_ids(queue) == ["ann-000"]
    for index in (1, 2, 3, 5, 7):
        assert await queue.cancel(f"ann-{index:03}") == "cancelled"
    assert await drain(queue, 4) == ["bob-000", "ann-004", "bob-001", "ann-006"]
    await push_all(redis, name, backlog("ann-again", 1))
    await push_all(redis, name, [("ann", "ann-new")])
    assert await drain(queue, 5) == ["bob-002", "bob-003", "ann-again-000", "ann-new", "bob-004"]


async def test_one_who_cancels_all_of_a_backlog_is_next_with_his_new_job(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, backlog("ann", 6))
    assert await claim_ids(queue) == ["ann-000"]
    for index in range(1, 6):
        assert await queue.cancel(f"ann-{index:03}") == "cancelled"
    assert await claim_ids(queue) == []
    await push_all(redis, name, [*backlog("bob", 5), ("ann", "ann-new")])
    assert await drain(queue, 3) == ["bob-000", "ann-new", "bob-001"]


@pytest.mark.parametrize("payload", [{"id": "none"}, {"id": "number", "user_id": 7}, {"id": "null", "user_id": None}])
async def test_jobs_without_a_user_are_one_users(open_, payload):
    queue = await open_(fair_users=True)
    await queue.push(json.dumps(payload))
    assert await claim_ids(queue) == [payload["id"]]


async def test_jobs_that_wait_for_their_turn_are_not_taken_for_lost(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, [*backlog("ann", 3), *backlog("bob", 1)])
    assert await claim_ids(queue) == ["ann-000"]
    await read_long_ago(redis, name)
    assert await drain(queue, 3) == ["bob-000", "ann-001", "ann-002"]
    assert await redis.zcard(f"{{{name}}}:delayed:0") == 0


async def test_what_is_kept_about_users_does_not_grow(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, [(f"user-{index}", f"job-{index}") for index in range(50)])
    await drain(queue, 50)
    await redis.hset(f"{{{name}}}:meta", "touched", "1")
    await claim_ids(queue)
    assert await redis.zcard(f"{{{name}}}:lines:0") == 0
    assert await redis.zcard(f"{{{name}}}:heads:0") == 0


async def test_a_turn_is_kept_where_consumer_groups_are_refused_and_the_stream_is_read_anew(without_groups, open_, redis, name):
    queue = await open_(url=without_groups, fair_users=True)
    await push_all(redis, name, backlog("ann", 3))
    assert await claim_ids(queue) == ["ann-000"]
    await push_all(redis, name, backlog("bob", 1))
    await queue.poll(claims=0)
    await redis.hset(f"{{{name}}}:meta", "touched", "1")
    assert await drain(queue, 3) == ["ann-001", "bob-000", "ann-002"]
    assert await drain(queue, 3) == []


async def test_a_job_that_was_read_but_never_leased_is_rescued_behind_any_number_that_wait_for_their_turn(open_, redis, name):
    queue = await open_(fair_users=True, moved_a_poll=5000)
    await push_all(redis, name, backlog("ann", 1100))
    await drain(queue, 3)
    await push_all(redis, name, [("bob", "lost")])
    await queue.poll(claims=0)
    await redis.xreadgroup("workers", "dead", {f"{{{name}}}:stream:0": ">"})
    await read_long_ago(redis, name)
    assert "lost" in await drain(queue, 4)


async def test_a_poll_claims_although_hundreds_that_were_cancelled_had_the_next_turns(open_, redis, name):
    queue = await open_(fair_users=True, moved_a_poll=5000)
    await push_all(redis, name, backlog("ann", 502))
    assert await claim_ids(queue) == ["ann-000"]
    for index in range(1, 501):
        assert await queue.cancel(f"ann-{index:03}") == "cancelled"
    assert await claim_ids(queue) == ["ann-501"]
    assert await redis.zcard(f"{{{name}}}:heads:0") == 0


async def test_a_line_that_has_lost_its_turn_gets_another(open_, redis, name):
    queue = await open_(fair_users=True)
    await push_all(redis, name, backlog("ann", 3))
    assert await claim_ids(queue) == ["ann-000"]
    await redis.delete(f"{{{name}}}:heads:0")  # a server that failed in the middle of a script
    await read_long_ago(redis, name)
    assert await drain(queue, 2) == ["ann-001", "ann-002"]


async def give_turns_as_an_older_version_did(redis, name):
    """Every job that waits has a turn of its own and was read from the stream."""
    ((_, read),) = await redis.xreadgroup("workers", "older", {f"{{{name}}}:stream:0": ">"})
    turns, users = {}, {}
    for entry, fields in read:
        user = fields["id"].rpartition("-")[0]
        turns[f"{entry} {fields['id']}"] = users[user] = users.get(user, 0) + 1
    await redis.zadd(f"{{{name}}}:turns:0", turns)
    await redis.zadd(f"{{{name}}}:users:0", users)


async def test_jobs_to_which_an_older_version_gave_turns_are_claimed_at_once_and_before_later_ones(open_, redis, name):
    queue = await open_(fair_users=True, moved_a_poll=5000)
    await push_all(redis, name, [*backlog("ann", 600), *backlog("bob", 2)])
    await queue.poll(claims=0)
    await give_turns_as_an_older_version_did(redis, name)
    await read_long_ago(redis, name)
    assert await queue.cancel("ann-001") == "cancelled"
    await push_all(redis, name, [("bob", "bob-new"), ("cyd", "cyd-new")])
    order = await drain(queue, 8)
    assert order == ["ann-000", "bob-000", "ann-002", "bob-001", "cyd-new", "ann-003", "bob-new", "ann-004"]
    assert not await redis.exists(f"{{{name}}}:turns:0", f"{{{name}}}:users:0")


async def test_jobs_to_which_an_older_version_gave_turns_are_claimed_where_nobody_asks_for_turns_any_more(open_, redis, name):
    queue = await open_()
    await push_all(redis, name, [*backlog("ann", 2), *backlog("bob", 1)])
    await queue.poll(claims=0)
    await give_turns_as_an_older_version_did(redis, name)
    await redis.hset(f"{{{name}}}:meta", "fair", "1")  # it asked long ago
    assert await drain(queue, 3) == ["ann-000", "bob-000", "ann-001"]
