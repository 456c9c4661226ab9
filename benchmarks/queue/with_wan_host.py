"""wan-host: ``push`` the jobs, or ``work`` until stopped, with everything that it does for a job but making the picture.

The worker is the real one: leases and fencing, job state, spool, publisher, outbox, reports, metrics, log. Its lanes and its
encoder are replaced by a file that is written at once, because the others have nothing of the kind; ``whole`` keeps them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from redis import Redis
from task import CONCURRENCY, CONTENT, JOBS, REDIS_URL, job_id

from wan_host import worker
from wan_host.cli import main
from wan_host.job import Job
from wan_host.lanes.state import LaneState
from wan_host.media import Media, OutputFile
from wan_host.reporting import Outcome
from wan_host.run import Run
from wan_host.stages import Product, Stages


class NoLanes:
    """As many free lanes as the other contenders have jobs at a time, and no process."""

    generate_lanes = CONCURRENCY
    enhancer = None

    def __init__(self, **_: Any) -> None:
        """Take what the real pool takes."""

    def states(self) -> Sequence[LaneState]:
        """Return nothing: there are none."""
        return ()

    async def start(self) -> None:
        """Start nothing."""

    async def stop(self) -> None:
        """Stop nothing."""

    async def cancel(self, run: Run) -> None:
        """Cancel a run."""
        run.cancel()


class InstantStages(Stages):
    """Stages whose picture is there at once."""

    async def produce(self, run: Run, job: Job) -> Product:
        """Write the file that all contenders publish."""
        path = run.workdir / "0.png"
        path.write_bytes(CONTENT)
        size = len(CONTENT)
        media = Media(
            asset_index=0,
            kind="image",
            path=path,
            width=64,
            height=64,
            frames=1,
            fps=0,
            duration=0,
            format="png",
            file_size_bytes=size,
            seed=7,
        )
        key = f"{job.user_id}/{job.id}/0.png"
        file = OutputFile(
            job_id=job.id,
            user_id=job.user_id,
            asset_index=0,
            role="asset",
            path=path,
            key=key,
            content_type="image/png",
            file_size_bytes=size,
        )
        return Product(media=(media,), files=(file,), outcome=Outcome())


def push(jobs: int) -> None:
    """Push the jobs as producers do."""
    with Redis.from_url(REDIS_URL) as client:
        for number in range(jobs):
            config = {"width": 64, "height": 64}
            job = {"id": job_id(number), "type": "image_fast", "prompt": "instant", "user_id": "bench", "config": config}
            client.rpush("wan_queue", json.dumps(job))


if __name__ == "__main__":
    if sys.argv[1] == "push":
        push(JOBS)
    else:
        if sys.argv[2:] != ["whole"]:
            worker.LanePool = NoLanes  # type: ignore[assignment,misc]
            worker.Stages = InstantStages  # type: ignore[misc]
        main(["run"])
