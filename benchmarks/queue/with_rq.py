"""rq: ``push`` the jobs, or ``work`` until stopped: its default, a process for each job, or, with ``nofork``, without."""

from __future__ import annotations

import functools
import sys

import httpx
import with_rq  # the module by its name: rq imports its jobs
from redis import Redis
from rq import Queue, SimpleWorker, Worker
from task import JOBS, REDIS_URL, job_id, work


@functools.cache
def client() -> httpx.Client:
    """Keep one HTTP client: with a process for each job it serves that job alone."""
    return httpx.Client()


def job(name: str) -> None:
    """Do one job."""
    work(client(), name)


if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(REDIS_URL))
    if sys.argv[1] == "push":
        for number in range(JOBS):
            queue.enqueue(with_rq.job, job_id(number), job_id=job_id(number))
    else:
        kind = SimpleWorker if sys.argv[2:] == ["nofork"] else Worker
        kind([queue], connection=queue.connection).work(logging_level="WARNING")
