"""Workers that die, lose answers and come late, on a queue with duplicates and poison: every job ends exactly once."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.queue.entries import job
from tests.queue.test_session import LosesAnswers
from wan_host.queue import JobQueue, LeaseLost, QueueUnavailable

JOBS = 60
MAX_ATTEMPTS = 4


class LosesSome(LosesAnswers):
    """Loses a tenth of the answers, before or after the server has done its work."""

    def __init__(self, inner, dice: random.Random):
        super().__init__(inner)
        self.dice = dice

    async def execute(self, *command):
        fate = self.dice.random()
        if fate < 0.05:
            raise QueueUnavailable("lost on the way there")
        answer = await self.inner.execute(*command)
        if fate < 0.1:
            raise QueueUnavailable("lost on the way back")
        return answer


class Ledger:
    """What the world outside sees."""

    def __init__(self):
        self.runs: dict[str, int] = {}
        self.finished: dict[str, list[str]] = {}
        self.reports: dict[str, list[tuple[int, str]]] = {}


async def work(queue: JobQueue, dice: random.Random, ledger: Ledger, done: asyncio.Event) -> None:
    while not done.is_set():
        try:
            poll = await queue.poll(claims=dice.randint(1, 3), worker={"device": "cpu"})
            await asyncio.gather(*(run(queue, claim, dice, ledger) for claim in poll.claims))
            for report in await queue.due_reports():
                fate = dice.random()
                if fate < 0.6:
                    ledger.reports.setdefault(report.job_id, []).append((report.sequence, report.report["status"]))
                    await queue.report_accepted(report)
                elif fate < 0.8:
                    await queue.report_retry(report, 0.01, "503")
            if not poll.claims:
                await asyncio.sleep(0.01)
        except QueueUnavailable:
            await asyncio.sleep(0.002)


async def run(queue: JobQueue, claim, dice: random.Random, ledger: Ledger) -> None:
    fate = dice.random()
    try:
        if fate < 0.1:
            return  # killed before it began
        if claim.attempts >= MAX_ATTEMPTS:
            await queue.finish(claim, status="failed", report={"status": "failed"}, dead_letter="attempts_exhausted")
            ledger.finished.setdefault(claim.job_id, []).append("failed")
            return
        await queue.start(claim)
        ledger.runs[claim.job_id] = ledger.runs.get(claim.job_id, 0) + 1
        await asyncio.sleep(dice.random() * 0.03)
        if fate < 0.3:
            return  # killed in the middle
        if fate < 0.4:
            await asyncio.sleep(0.12)  # too late: the lease has ended
        if fate < 0.5:
            await queue.release(claim, reason="crash", defer=dice.random() * 0.02)
            return
        await queue.renew([claim], {claim.job_id: {"step": 1}})
        await queue.check(claim)
        await queue.finish(claim, status="published", report={"status": "completed"})
        ledger.finished.setdefault(claim.job_id, []).append("published")
    except (LeaseLost, QueueUnavailable):
        return


async def test_every_job_ends_exactly_once_where_groups_are_refused(without_groups, open_, redis, name, monkeypatch):
    def open_plain(worker_id, **options):
        return open_(worker_id, url=without_groups, **options)

    await test_every_job_ends_exactly_once(4, open_plain, redis, name, monkeypatch)
    assert await redis.xinfo_groups(f"{{{name}}}:stream:0") == []


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_job_ends_exactly_once(seed, open_, redis, name, monkeypatch):
    monkeypatch.setattr("wan_host.queue.outbox.DELIVERY_SECONDS", 0.05)
    monkeypatch.setattr("wan_host.queue.jobqueue.DELIVERY_SECONDS", 0.05)
    dice, ledger, done = random.Random(seed), Ledger(), asyncio.Event()
    queues = [await open_(f"w{index}", lease_seconds=0.1) for index in range(4)]
    for queue in queues:
        queue._transport = LosesSome(queue._transport, dice)
    workers = [asyncio.create_task(work(queue, dice, ledger, done)) for queue in queues]
    ids = [f"j{index}" for index in range(JOBS)]
    for job_id in ids:
        await redis.rpush(name, job(job_id, priority=dice.randint(0, 9)))
        if dice.random() < 0.3:
            await redis.rpush(name, dice.choice(["poison", "{}", job(job_id)]))
    witness = await open_("witness")
    async with asyncio.timeout(20):
        while True:
            states = {state.job_id: state for state in await witness.jobs(limit=1000)}
            if set(ids) <= set(states) and all(state.report_state == "accepted" for state in states.values()):
                break
            await asyncio.sleep(0.05)
    done.set()
    await asyncio.gather(*workers)
    for queue in queues:
        queue._transport = queue._transport.inner

    depth = await witness.depth()
    assert (depth.waiting, depth.leased, depth.delayed, depth.reports) == (0, 0, 0, 0)
    letters = {letter.job_id for letter in await witness.dead_letters(1000) if letter.job_id}
    for job_id in ids:
        state = states[job_id]
        assert len(ledger.finished.get(job_id, [])) <= 1, "two workers ended the same job"
        assert state.status == ("failed" if job_id in letters else "completed")
        assert state.attempts <= MAX_ATTEMPTS
        statuses = {status for _, status in ledger.reports[job_id]}
        assert statuses == {"failed" if job_id in letters else "completed"}
        assert state.runs >= ledger.runs.get(job_id, 0)
