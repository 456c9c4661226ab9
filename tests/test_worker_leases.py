"""The claims that a worker works on: renewed while they move, stopped when they are lost, left alone when they are ending."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

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
        self.standing, self.renewals = standing, asyncio.Event()

    async def renew(self, claims, progress, worker):
        self.renewals.set()
        return {claim.job_id: self.standing for claim in claims}


class Attempts:
    """Works until it is let go; ``ending``: is at the queue's last word meanwhile."""

    def __init__(self, *, ending):
        self.ending, self.go_on = ending, asyncio.Event()

    async def work(self, claim, run):
        run.ending = self.ending
        await self.go_on.wait()


@pytest.mark.parametrize(
    ("standing", "ending", "cancelled"),
    [("lost", False, ["a"]), ("lost", True, []), ("cancelled", False, ["a"]), ("held", False, []), ("held", True, [])],
)
async def test_a_lost_lease_stops_its_run_unless_it_is_ending_anyway(tmp_path, standing, ending, cancelled):
    spool = Spool(tmp_path)
    spool.open()
    queue, attempts, pool = Queue(standing), Attempts(ending=ending), Pool()
    readiness = SimpleNamespace(queue_answered=lambda: None)
    leases = Leases(
        queue=queue,
        attempts=attempts,
        spool=spool,
        pool=pool,
        settings=load_settings(),
        readiness=readiness,
        describe=dict,
        changed=lambda: None,
    )
    renewing = asyncio.create_task(leases.keep_renewing())
    claim = Claim("a", "{}", 1, 0, 0, 1, 0.0, 0, "1-0")
    leases.begin(claim, leased=0.0)
    await asyncio.wait_for(queue.renewals.wait(), 5)
    await asyncio.sleep(0)
    assert pool.cancelled == cancelled
    renewing.cancel()
    attempts.go_on.set()
    spool.close()
