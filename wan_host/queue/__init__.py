"""The job queue: Redis Streams on an embedded Valkey, over TCP, or over Upstash REST.

`open_queue` chooses; `JobQueue` is all that the host sees. `scripts/*.lua` hold the atomic steps, `transport.py` and its
three implementations carry them, `embedded.py` runs the server that a worker without settings uses.
"""

from wan_host.errors import LeaseLost, QueueUnavailable
from wan_host.queue.embedded import EmbeddedServer
from wan_host.queue.jobqueue import JobQueue
from wan_host.queue.opening import open_queue
from wan_host.queue.records import (
    Claim,
    DeadLetter,
    Depth,
    Duplicate,
    JobState,
    PendingReport,
    Poison,
    Poll,
    Standing,
    Started,
    WorkerState,
)

__all__ = [
    "Claim",
    "DeadLetter",
    "Depth",
    "Duplicate",
    "EmbeddedServer",
    "JobQueue",
    "JobState",
    "LeaseLost",
    "PendingReport",
    "Poison",
    "Poll",
    "QueueUnavailable",
    "Standing",
    "Started",
    "WorkerState",
    "open_queue",
]
