"""What people ask of the queue, and what they do to jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, job
from wan_host.queue import LeaseLost


class TestCancel:
    async def test_of_a_waiting_job_ends_it_and_sends_a_report(self, queue):
        await queue.push(job("a"))
        assert await queue.cancel("a") == "cancelled"
        assert await claim_ids(queue) == []
        (report,) = await queue.due_reports()
        assert (report.report["job_id"], report.report["metadata"]["error_type"]) == ("a", "cancelled")
        assert (await queue.job("a")).status == "cancelled"
        assert await queue.cancel("a") == "finished"

    async def test_uses_the_report_that_is_given(self, queue):
        await queue.push(job("a"))
        await queue.cancel("a", {"job_id": "a", "status": "cancelled"})
        (report,) = await queue.due_reports()
        assert report.report["status"] == "cancelled"

    async def test_of_a_delayed_job_ends_it(self, queue):
        await queue.release(await claimed(queue), reason="test", defer=0.05)
        assert await queue.cancel("a") == "cancelled"
        await asyncio.sleep(0.06)
        assert await claim_ids(queue) == []
        assert (await queue.depth()).waiting == 0

    async def test_of_a_running_job_is_seen_by_its_worker_and_no_other(self, open_):
        queue, other = await open_("w1"), await open_("w2")
        claim = await claimed(queue)
        assert await other.cancel("a") == "cancelling"
        assert (await queue.job("a")).cancelling
        assert await queue.renew([claim]) == {"a": "cancelled"}
        assert (await queue.poll(claims=1)).cancelled == {"a"}
        assert (await other.poll(claims=1)).cancelled == frozenset()
        await queue.finish(claim, status="cancelled", report=REPORT)
        assert (await queue.poll(claims=1)).cancelled == frozenset()
        assert (await queue.job("a")).status == "cancelled"

    async def test_is_not_forgotten_when_the_worker_dies(self, open_):
        dying, other = await open_("w1", lease_seconds=0.1), await open_("w2")
        await claimed(dying)
        await other.cancel("a")
        await asyncio.sleep(0.12)
        (claim,) = (await other.poll(claims=1)).claims
        assert claim.cancelled

    async def test_of_a_job_whose_worker_is_dead_ends_it_at_once(self, open_):
        dying, other = await open_("w1", lease_seconds=0.05), await open_("w2")
        claim = await claimed(dying)
        await asyncio.sleep(0.07)
        assert await other.cancel("a") == "cancelled"
        assert await claim_ids(other) == []
        with pytest.raises(LeaseLost):
            await dying.finish(claim, status="published", report=REPORT)

    async def test_of_an_unknown_job_says_so(self, queue):
        assert await queue.cancel("nobody") == "unknown"

    async def test_finds_a_job_behind_many_that_no_poll_has_moved_yet(self, queue, redis, name):
        await redis.rpush(name, *(job(f"j{index}") for index in range(1500)))
        assert await queue.cancel("j1499") == "cancelled"


class TestRetry:
    async def test_of_a_dead_letter_runs_it_anew_with_the_same_payload(self, queue):
        claim = await claimed(queue, priority=2)
        await queue.start(claim)
        await queue.finish(claim, status="failed", report=REPORT, error={"e": 1}, dead_letter="attempts_exhausted")
        assert await queue.retry("a")
        assert await queue.dead_letters() == []
        assert await queue.due_reports() != []  # the report that this worker was already delivering
        (again,) = (await queue.poll(claims=1)).claims
        assert (again.payload, again.attempts, again.runs, again.priority) == (claim.payload, 0, 1, 2)
        assert again.seed == claim.seed

    async def test_of_a_cancelled_job_runs_it(self, queue):
        await queue.push(job("a"))
        await queue.cancel("a")
        assert await queue.retry("a")
        assert await claim_ids(queue) == ["a"]

    async def test_of_anything_else_does_nothing(self, queue):
        assert not await queue.retry("nobody")
        claim = await claimed(queue)
        assert not await queue.retry("a")
        await queue.finish(claim, status="published", report=REPORT)
        assert not await queue.retry("a")


async def test_a_job_that_was_just_pushed_is_known(queue):
    await queue.push(job("a"))
    state = await queue.job("a")
    assert (state.status, state.payload) == ("waiting", job("a"))
    assert await queue.job("nobody") is None


async def test_jobs_are_listed_newest_first_and_by_status(queue):
    for job_id in ("a", "b", "c"):
        await queue.push(job(job_id))
        await queue.poll(claims=0)
        await asyncio.sleep(0.002)
    (claim,) = (await queue.poll(claims=1)).claims
    await queue.start(claim)
    assert [state.job_id for state in await queue.jobs()] == ["c", "b", "a"]
    assert [state.job_id for state in await queue.jobs(limit=2)] == ["c", "b"]
    assert [state.job_id for state in await queue.jobs(status="running")] == ["a"]
    assert [state.job_id for state in await queue.jobs(limit=1, status="waiting")] == ["c"]


async def test_workers_are_listed_with_what_they_are_and_do(open_, redis, name):
    queue, visitor = await open_("w1", lease_seconds=0.1), await open_("visitor")
    await queue.push(job("a"))
    (claim,) = (await queue.poll(claims=1, worker={"device": "cuda:0"})).claims
    await queue.start(claim)
    (worker,) = await visitor.workers()
    assert (worker.worker_id, worker.alive, worker.about, worker.jobs) == ("w1", True, {"device": "cuda:0"}, {"a": "running"})
    await redis.hincrby(f"{{{name}}}:worker:w1", "seen", -16_000)
    (worker,) = await visitor.workers()
    assert not worker.alive
    await queue.renew([claim])
    (again,) = await visitor.workers()
    assert (again.alive, again.since) == (True, worker.since)


@pytest.mark.parametrize(("lease", "longest"), [(3, 15), (30, 30)])
async def test_a_worker_is_alive_for_its_lease_and_at_least_for_as_long_as_an_idle_one_is_silent(
    open_, redis, name, lease, longest
):
    queue = await open_(lease_seconds=lease)
    await queue.poll(claims=1, worker={"device": "cpu"})
    await redis.hincrby(f"{{{name}}}:worker:w1", "seen", -(longest - 2) * 1000)
    assert [worker.alive for worker in await queue.workers()] == [True]
    await redis.hincrby(f"{{{name}}}:worker:w1", "seen", -2001)
    assert [worker.alive for worker in await queue.workers()] == [False]


async def test_a_worker_that_leaves_is_not_listed_any_more(open_):
    queue, visitor = await open_("w1"), await open_("visitor")
    await queue.poll(claims=1, worker={"device": "cpu"})
    assert len(await visitor.workers()) == 1
    await queue.aclose()
    assert await visitor.workers() == []


async def test_depth_counts_what_there_is_to_do(queue, redis, name):
    first = await claimed(queue, "a")
    await claimed(queue, "b")
    await queue.release(first, reason="test", defer=60)
    await redis.rpush(name, job("c"), "poison")
    await queue.poll(claims=0)
    await redis.rpush(name, job("d"))
    depth = await queue.depth()
    assert (depth.waiting, depth.delayed, depth.leased, depth.dead_letters) == (3, 1, 1, 1)
    assert (await queue.poll(claims=0)).depth == 3


async def test_the_states_of_many_jobs_are_asked_for_at_once_without_their_payloads(queue):
    await queue.push(job("waits", prompt="x" * 10_000))
    await queue.push(job("runs", priority=9))
    assert await queue.states(["waits", "runs"]) == {}
    await queue.take_in()
    (claim,) = (await queue.poll(claims=1)).claims
    await queue.start(claim)
    await queue.renew([claim], {"runs": {"stage": "denoise", "step": 1, "total": 4}})
    before = queue.commands
    states = await queue.states([*(f"nobody-{number}" for number in range(400)), "waits", "runs"])
    assert queue.commands == before + 1
    assert {name: (state.status, state.payload, state.progress.get("step")) for name, state in states.items()} == {
        "waits": ("waiting", "", None),
        "runs": ("running", "", 1),
    }
    assert states["runs"].digest == hashlib.sha1(job("runs", priority=9).encode()).hexdigest()
    assert len(await queue.states(["runs"] * 1200)) == 1
    assert queue.commands == before + 4


async def test_the_states_of_jobs_are_told_without_a_look_at_their_payloads(queue, redis, name):
    claim = await claimed(queue)
    await redis.delete(*await redis.keys(f"{{{name}}}:*"))
    await queue.renew([claim])  # writes the job anew
    await queue.push(job("b"))
    await queue.take_in()
    for job_id in "ab":
        assert await redis.hdel(f"{{{name}}}:job:{job_id}", "payload") == 1
    states = await queue.states(["a", "b"])
    assert {name: state.digest for name, state in states.items()} == {
        job_id: hashlib.sha1(job(job_id).encode()).hexdigest() for job_id in "ab"
    }


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "é🔴" * 3000}, {"prompt": "é🔴" * 250, "config": {}}),
        (
            {"prompt": '"seed": 3' * 1000, "seed": 3, "config": {"model": "tiny", "seed": 2**63 - 9}, "user_id": "u"},
            {"prompt": ('"seed": 3' * 1000)[:500], "seed": 2**63 - 9, "config": {"model": "tiny"}, "user_id": "u"},
        ),
        ({"prompt": 17, "seed": 10.0, "config": [], "type": None, "more": "x" * 5000}, {"config": {}}),
    ],
)
async def test_a_list_tells_of_a_large_job_what_lists_show(queue, fields, told):
    text = job("large", **fields)
    await queue.push(text)
    await queue.push(job("small"))
    await queue.take_in()
    listed = {state.job_id: state for state in await queue.jobs()}
    assert json.loads(listed["large"].payload) == ({"type": "video_fast"} if "type" not in fields else {}) | told
    assert listed["small"].payload == job("small")
    whole = await queue.job("large")
    assert (whole.payload, whole.seed) == (text, listed["large"].seed)
    (claim,) = (await queue.poll(claims=1)).claims
    assert (claim.payload, claim.seed) == (text, whole.seed)


async def test_a_list_tells_of_the_last_submission_of_a_failed_job(queue):
    failing = await claimed(queue, "a", prompt="x" * 5000)
    await queue.finish(failing, status="failed", report=REPORT)
    await queue.push(job("a"))
    await queue.take_in()
    (listed,) = await queue.jobs()
    assert listed.payload == job("a")


async def test_large_entries_are_all_taken_in(queue, redis, name):
    await redis.rpush(name, *(job(f"j{number}", prompt="x" * 900_000) for number in range(20)))
    await queue.take_in()
    assert len(await queue.states([f"j{number}" for number in range(20)])) == 20


class TestAhead:
    async def test_counts_what_is_done_before_a_waiting_job(self, queue):
        for name in "abc":
            await queue.push(job(name))
        await queue.push(job("urgent", priority=5))
        await queue.take_in()
        assert await queue.ahead(["a", "c", "urgent", "unknown"]) == {"urgent": 0, "a": 1, "c": 3}
        assert [claim.job_id for claim in (await queue.poll(claims=2)).claims] == ["urgent", "a"]
        assert await queue.ahead(["a", "b", "c"]) == {"b": 0, "c": 1}

    async def test_counts_no_further_than_is_cheap(self, queue):
        for number in range(1100):
            await queue.push(job(f"job-{number}"))
        await queue.take_in()
        assert await queue.ahead(["job-10", "job-999", "job-1000", "job-1099"]) == {
            "job-10": 10,
            "job-999": 999,
            "job-1000": 1000,
            "job-1099": 1000,
        }

    async def test_walks_a_priority_once_for_all(self, queue, redis):
        for number in range(40):
            await queue.push(job(f"job-{number}", priority=number % 2))
        await queue.take_in()
        assert len((await queue.poll(claims=5)).claims) == 5  # of priority 1
        walked = (await redis.info("commandstats"))["cmdstat_xrange"]["calls"]
        expected = {f"job-{number}": number // 2 - 5 for number in range(11, 40, 2)}
        expected |= {f"job-{number}": 15 + number // 2 for number in range(0, 40, 2)}
        assert await queue.ahead([f"job-{number}" for number in range(40)]) == expected
        assert (await redis.info("commandstats"))["cmdstat_xrange"]["calls"] == walked + 2


@pytest.mark.parametrize("ask", ["job", "cancel"])
async def test_an_entry_that_another_worker_takes_in_while_it_is_asked_about_is_found(open_, monkeypatch, ask):
    queue, other = await open_("w1"), await open_("w2")
    take_in = queue.take_in

    async def taken_in_elsewhere():
        await other.poll(claims=0)
        return await take_in()

    monkeypatch.setattr(queue, "take_in", taken_in_elsewhere)
    await queue.push(job("a"))
    assert await getattr(queue, ask)("a") not in (None, "unknown")
