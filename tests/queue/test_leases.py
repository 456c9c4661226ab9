"""Who holds a job, for how long, and how often it may be run."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import asdict

import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, job
from wan_host.queue import Claim, LeaseLost


async def test_two_workers_never_share_a_claim(open_, redis, name):
    workers = [await open_(f"w{index}") for index in range(4)]
    await redis.rpush(name, *(job(f"j{index}") for index in range(100)))

    async def drain(queue):
        found = []
        while claims := await claim_ids(queue, 3):
            found += claims
        return found

    found = await asyncio.gather(*(drain(queue) for queue in workers))
    assert sorted(itertools.chain.from_iterable(found)) == sorted(f"j{index}" for index in range(100))


async def test_an_attempt_counts_when_the_run_starts_and_only_once(open_):
    queue, other = await open_("w1", lease_seconds=0.15), await open_("w2")
    claim = await claimed(queue)
    await asyncio.sleep(0.2)
    (claim,) = (await queue.poll(claims=1)).claims
    assert claim.attempts == 0
    started = await queue.start(claim)
    assert await queue.start(claim) == started
    assert (started.attempt, started.counted) == (1, 1)
    assert (await queue.job("a")).status == "running"
    await asyncio.sleep(0.2)
    (claim,) = (await other.poll(claims=1)).claims
    assert claim.attempts == 1
    assert (await other.start(claim)).attempt == 2


async def test_a_lease_that_is_renewed_is_never_reaped_even_by_a_worker_with_shorter_leases(open_):
    holder, hasty = await open_("w1", lease_seconds=0.3), await open_("w2", lease_seconds=0.01)
    claim = await claimed(holder)
    for _ in range(8):
        await asyncio.sleep(0.08)
        assert await claim_ids(hasty) == []
        assert await holder.renew([claim]) == {"a": "held"}


async def test_a_lease_that_ended_goes_to_another_worker_and_the_old_token_is_worth_nothing(open_):
    old, new = await open_("w1", lease_seconds=0.1), await open_("w2")
    stale = await claimed(old)
    await old.start(stale)
    await asyncio.sleep(0.12)
    (claim,) = (await new.poll(claims=1)).claims
    assert claim.token > stale.token
    assert await old.renew([stale]) == {"a": "lost"}
    for attempt in (
        old.check(stale),
        old.start(stale),
        old.finish(stale, status="published", report=REPORT),
        old.release(stale, reason="test"),
    ):
        with pytest.raises(LeaseLost):
            await attempt
    assert await old.adopt("a", stale.token) is None
    await new.check(claim)
    assert (await new.job("a")).worker == "w2"


async def test_a_worker_that_was_late_but_not_replaced_keeps_its_job(open_):
    queue = await open_(lease_seconds=0.05)
    claim = await claimed(queue)
    await asyncio.sleep(0.08)
    assert await queue.renew([claim]) == {"a": "held"}
    await queue.check(claim)


async def test_renewal_is_one_command_for_all_jobs_and_stores_their_progress(queue):
    claims = [await claimed(queue, job_id) for job_id in ("a", "b")]
    before = queue.commands
    assert await queue.renew(claims, {"b": {"stage": "denoise", "step": 7}}) == {"a": "held", "b": "held"}
    assert queue.commands == before + 1
    assert (await queue.job("b")).progress == {"stage": "denoise", "step": 7}
    assert await queue.renew([]) == {}


async def test_a_job_handed_back_is_claimed_again_after_its_delay(queue):
    claim = await claimed(queue)
    await queue.release(claim, reason="lane crashed", defer=0.15, error={"error_type": "lane_crashed"})
    state = await queue.job("a")
    assert (state.status, state.reason, state.error) == ("waiting", "lane crashed", {"error_type": "lane_crashed"})
    poll = await queue.poll(claims=1)
    assert poll.claims == ()
    assert 0 < poll.next_due <= 0.15
    await asyncio.sleep(0.16)
    assert await claim_ids(queue) == ["a"]


async def test_a_run_that_is_refunded_does_not_count_but_its_number_is_not_used_again(queue):
    claim = await claimed(queue)
    await queue.start(claim)
    await queue.release(claim, reason="shutdown", refund=True)
    (claim,) = (await queue.poll(claims=1)).claims
    assert claim.attempts == 0
    started = await queue.start(claim)
    assert (started.attempt, started.counted) == (2, 1)


async def test_a_refund_before_the_run_gives_no_attempt_for_nothing(queue):
    claim = await claimed(queue)
    await queue.start(claim)
    await queue.release(claim, reason="crash")
    (claim,) = (await queue.poll(claims=1)).claims
    await queue.release(claim, reason="shutdown", refund=True)
    (claim,) = (await queue.poll(claims=1)).claims
    assert claim.attempts == 1


async def test_sequence_numbers_rise_over_all_runs_and_reports(queue):
    claim = await claimed(queue)
    first = await queue.start(claim)
    await queue.release(claim, reason="crash")
    (claim,) = (await queue.poll(claims=1)).claims
    second = await queue.start(claim)
    last = await queue.finish(claim, status="published", report=REPORT)
    assert first.sequence + first.reserved <= second.sequence
    assert second.sequence + second.reserved <= last < 2**31


async def test_a_finished_job_leaves_nothing_in_the_stream(queue, redis, name):
    claim = await claimed(queue, priority=3)
    await queue.finish(claim, status="published", report=REPORT, result={"assets": 1})
    assert await redis.xlen(f"{{{name}}}:stream:3") == 0
    assert (await redis.xpending(f"{{{name}}}:stream:3", "workers"))["pending"] == 0
    state = await queue.job("a")
    assert (state.status, state.result, state.report_state) == ("published", {"assets": 1}, "pending")
    depth = await queue.depth()
    assert (depth.waiting, depth.leased, depth.reports) == (0, 0, 1)


async def test_a_published_job_without_a_report_is_completed(queue):
    await queue.finish(await claimed(queue), status="published", report=None)
    assert (await queue.job("a")).status == "completed"
    assert await queue.due_reports() == []


async def test_an_entry_whose_state_has_expired_is_told_and_does_not_block(queue, redis, name):
    await queue.push(job("a"))
    await queue.poll(claims=0)
    await redis.delete(f"{{{name}}}:job:a")
    await queue.push(job("b"))
    poll = await queue.poll(claims=2)
    assert [claim.job_id for claim in poll.claims] == ["b"]
    assert [(poison.job_id, poison.reason) for poison in poll.poisoned] == [("a", "expired")]


async def test_an_entry_that_was_read_but_never_leased_is_rescued(queue, redis, name, monkeypatch):
    await queue.push(job("a"))
    await queue.poll(claims=0)
    stream, meta = f"{{{name}}}:stream:0", f"{{{name}}}:meta"
    ((_, ((entry, _),)),) = await redis.xreadgroup("workers", "dead", {stream: ">"})
    assert await claim_ids(queue) == []
    await redis.execute_command("XCLAIM", stream, "workers", "dead", "0", entry, "IDLE", "700000")
    await redis.hset(meta, "touched", 0)
    assert await claim_ids(queue) == ["a"]


async def test_a_poll_finds_the_next_job_behind_many_that_run_where_groups_are_refused(without_groups, open_, redis, name):
    queue = await open_(url=without_groups)
    await redis.rpush(name, *(job(f"j{index}") for index in range(100)))
    for _ in range(3):
        await queue.poll(claims=50)
    await queue.push(job("next"))
    await redis.hset(f"{{{name}}}:meta", "touched", 0)  # the next poll reads the stream anew
    assert await claim_ids(queue) == ["next"]


class TestAdoption:
    async def test_a_worker_that_restarts_has_its_job_again(self, open_):
        before = await open_("w1")
        claim = await claimed(before)
        await before.start(claim)
        after = await open_("w1")
        adopted = await after.adopt("a", claim.token)
        assert adopted is not None
        assert (adopted.token, adopted.payload, adopted.attempts) == (claim.token, claim.payload, 1)
        await after.finish(adopted, status="published", report=REPORT)

    async def test_a_job_that_was_handed_back_and_is_still_waiting_can_be_adopted(self, open_):
        queue, other = await open_("w1"), await open_("w2")
        claim = await claimed(queue)
        await queue.release(claim, reason="shutdown")
        assert await queue.adopt("a", claim.token) is not None
        assert await claim_ids(other) == []

    async def test_a_job_that_is_done_cannot(self, queue):
        claim = await claimed(queue)
        await queue.finish(claim, status="published", report=REPORT)
        assert await queue.adopt("a", claim.token) is None
        assert await queue.adopt("unknown", 1) is None


class TestAServerThatComesBackEmpty:
    @pytest.fixture
    async def forget(self, redis, name):
        async def forget():
            async for key in redis.scan_iter(f"{{{name}}}:*"):
                await redis.delete(key)

        return forget

    async def test_is_told_what_is_running_and_the_job_ends_as_if_nothing_had_been(self, queue, forget):
        claim = await claimed(queue, priority=4)
        started = await queue.start(claim)
        await forget()
        assert await queue.renew([claim]) == {"a": "held"}
        await queue.check(claim)
        state = await queue.job("a")
        assert (state.attempts, state.runs, state.seed, state.priority) == (1, started.attempt, claim.seed, 4)
        assert await claim_ids(queue) == []
        assert await queue.finish(claim, status="published", report=REPORT) > started.sequence
        assert (await queue.depth()).waiting == 0

    @pytest.mark.parametrize("operation", ["start", "check", "finish", "release"])
    async def test_is_told_by_any_operation(self, operation, queue, forget):
        claim = await claimed(queue)
        await forget()
        options = {"finish": {"status": "published", "report": REPORT}, "release": {"reason": "test"}}
        await getattr(queue, operation)(claim, **options.get(operation, {}))
        assert (await queue.job("a")).seed == claim.seed

    async def test_gives_a_restored_job_to_others_once_its_holder_is_dead(self, open_, forget):
        holder, other = await open_("w1", lease_seconds=0.1), await open_("w2")
        claim = await claimed(holder)
        await holder.start(claim)
        await forget()
        await holder.renew([claim])
        assert await claim_ids(other) == []
        await asyncio.sleep(0.12)
        (taken,) = (await other.poll(claims=3)).claims
        assert (taken.attempts, taken.payload) == (1, claim.payload)
        with pytest.raises(LeaseLost):
            await holder.check(claim)

    async def test_is_told_of_spooled_jobs(self, open_, forget):
        before = await open_("w1")
        claim = await claimed(before)
        await before.start(claim)
        await forget()
        after = await open_("w1")
        adopted = await after.adopt("a", claim.token, lost=Claim(**asdict(claim)))
        assert adopted is not None
        assert adopted.payload == claim.payload
        await after.finish(adopted, status="published", report=REPORT)

    async def test_lists_and_turns_know_of_a_large_job_what_they_knew_before(self, queue, forget, redis, name):
        claim = await claimed(queue, user_id="ann", seed=7, extra="x" * 20_000)
        before = await redis.hmget(f"{{{name}}}:job:a", "brief", "user")
        await forget()
        await queue.check(claim)
        assert await redis.hmget(f"{{{name}}}:job:a", "brief", "user") == before
        (listed,) = await queue.jobs()
        assert (json.loads(listed.payload)["user_id"], listed.seed, "x" * 600 in listed.payload) == ("ann", 7, False)

    async def test_is_noticed_by_the_next_poll(self, queue, forget):
        assert not (await queue.poll(claims=1)).state_lost
        await forget()
        assert (await queue.poll(claims=1)).state_lost
        assert not (await queue.poll(claims=1)).state_lost
