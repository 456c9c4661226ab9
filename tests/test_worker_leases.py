"""The claims that a worker works on: renewed while they move, stopped when they are lost, left alone when they are ending."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from wan_host.errors import PermanentError, QueueUnavailable
from wan_host.leases import Leases
from wan_host.queue import Claim
from wan_host.settings import load_settings
from wan_host.spool import Spool


class Pool:
    def __init__(self):
        self.cancelled = []

    async def cancel(self, run):
        self.cancelled.append(run.job_id)
        run.cancel()


class Queue:
    """Answers every renewal the same way, and says when it has."""

    backend, lease_seconds = "tcp", 0.06

    def __init__(self, standing):
        self.standing, self.renewals, self.faults = standing, asyncio.Event(), []

    async def renew(self, claims, progress, worker):
        if self.faults:
            raise self.faults.pop()
        self.renewals.set()
        return {claim.job_id: self.standing for claim in claims}


class Attempts:
    """Works until it is let go; ``ending``: is at the queue's last word meanwhile."""

    def __init__(self, *, ending):
        self.ending, self.go_on = ending, asyncio.Event()

    async def work(self, claim, run):
        run.ending = self.ending
        await self.go_on.wait()


@pytest.fixture
def held(tmp_path):
    """Hold a claim with these players, and renew it."""
    spool = Spool(tmp_path)
    spool.open()
    tasks = []

    def hold(queue, attempts, pool):
        leases = Leases(
            queue=queue,
            attempts=attempts,
            spool=spool,
            pool=pool,
            settings=load_settings(),
            readiness=SimpleNamespace(queue_answered=lambda: None, queue_failed=lambda _: None),
            describe=dict,
            changed=lambda: None,
        )
        tasks.append(asyncio.create_task(leases.keep_renewing()))
        leases.begin(Claim("a", "{}", 1, 0, 0, 1, 0.0, 0, "1-0"), leased=0.0)
        return leases

    yield hold
    for task in tasks:
        task.cancel()
    spool.close()


@pytest.mark.parametrize(
    ("standing", "ending", "cancelled"),
    [("lost", False, ["a"]), ("lost", True, []), ("cancelled", False, ["a"]), ("held", False, []), ("held", True, [])],
)
async def test_a_lost_lease_stops_its_run_unless_it_is_ending_anyway(held, standing, ending, cancelled):
    queue, attempts, pool = Queue(standing), Attempts(ending=ending), Pool()
    held(queue, attempts, pool)
    await asyncio.wait_for(queue.renewals.wait(), 5)
    await asyncio.sleep(0)
    assert pool.cancelled == cancelled
    attempts.go_on.set()


@pytest.mark.parametrize("fault", [QueueUnavailable("away"), PermanentError("the server refuses")])
async def test_a_server_that_refuses_for_a_while_does_not_end_the_renewals(held, fault):
    queue, attempts, pool = Queue("held"), Attempts(ending=False), Pool()
    queue.faults = [fault, fault]
    held(queue, attempts, pool)
    await asyncio.wait_for(queue.renewals.wait(), 5)
    assert queue.faults == []
    attempts.go_on.set()


async def test_a_job_that_is_claimed_again_while_it_runs_here_waits_for_its_earlier_run_and_stays_held(held):
    queue, pool, order = Queue("held"), Pool(), []
    first_may_end, second_may_end = asyncio.Event(), asyncio.Event()

    class Twice:
        async def work(self, claim, run):
            order.append(f"run {claim.token} begins")
            await (first_may_end if claim.token == 1 else second_may_end).wait()
            order.append(f"run {claim.token} ends")

    leases = held(queue, Twice(), pool)
    await asyncio.sleep(0)
    leases.begin(Claim("a", "{}", 2, 0, 0, 1, 0.0, 0, "1-0"), leased=0.0)
    await asyncio.sleep(0.01)
    assert (order, pool.cancelled) == (["run 1 begins"], ["a"])
    first_may_end.set()
    await asyncio.sleep(0.01)
    assert order == ["run 1 begins", "run 1 ends", "run 2 begins"]
    assert [run.token for run in leases.runs()] == [2], "the end of the first run does not release the second"
    second_may_end.set()
    await asyncio.sleep(0.01)
    assert leases.runs() == []
