"""Entries and reports that the tests of the queue use."""

from __future__ import annotations

import json
from typing import Any

from wan_host.queue import Claim, JobQueue, Poll

REPORT = {"job_id": "a", "status": "completed", "assets": []}


def job(job_id: str, **fields: Any) -> str:
    """The JSON of a job, as a producer writes it."""
    return json.dumps({"id": job_id, "type": "video_fast", "prompt": "a red circle", **fields})


async def claimed(queue: JobQueue, job_id: str = "a", **fields: Any) -> Claim:
    """Push a job and claim it."""
    await queue.push(job(job_id, **fields))
    poll = await queue.poll(claims=1)
    assert [claim.job_id for claim in poll.claims] == [job_id]
    return poll.claims[0]


def dropped(poll: Poll) -> list[str]:
    """The ids that were pushed while they were already waiting, running or done."""
    return [duplicate.job_id for duplicate in poll.duplicates if duplicate.action != "rerun"]


async def claim_ids(queue: JobQueue, claims: int = 1) -> list[str]:
    """The ids of what one poll claims."""
    return [claim.job_id for claim in (await queue.poll(claims=claims)).claims]
