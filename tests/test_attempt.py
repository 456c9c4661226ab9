"""One claimed job on its way to the queue's last word."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.sample_jobs import MODELS, WAN, payload
from wan_host.attempt import Attempts
from wan_host.costs import CostModel
from wan_host.errors import LeaseLost, QueueUnavailable
from wan_host.media import PublishedFile
from wan_host.metrics import Metrics
from wan_host.queue import Claim, Started
from wan_host.request import Clip, Generation
from wan_host.run import Run
from wan_host.settings import load_settings
from wan_host.spool import Spool, SpooledJob
from wan_host.stages import Stages

LEASE = 30.0


class FakeQueue:
    """Notes what it is asked; ``faults`` are raised first, one a call."""

    lease_seconds = LEASE

    def __init__(self):
        self.asked, self.faults = [], []

    def _answer(self, what):
        self.asked.append(what)
        if self.faults:
            raise self.faults.pop(0)

    async def start(self, claim):
        return Started(attempt=1, counted=1, sequence=1, started_at=time.time(), reserved=1)

    async def check(self, claim):
        self._answer("check")

    async def finish(self, claim, **what):
        self._answer("finish")
        return 1


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def attempts(queue, tmp_path):
    async def publish(run, files):
        queue.asked.append("publish")
        return {}

    async def drop(run):
        queue.asked.append("drop the checkpoint")

    return Attempts(
        queue=queue,
        stages=SimpleNamespace(publish=publish, checkpoints=SimpleNamespace(drop=drop)),
        hooks=None,
        spool=None,
        metrics=Metrics(),
        settings=SimpleNamespace(callback_timeout=1.0),
        costs=CostModel(tmp_path / "costs.json", device="cpu"),
        wake_outbox=lambda: queue.asked.append("wake"),
    )


def leased_before(seconds):
    run = Run(job_id="a", user_id="u", token=1, attempt=1, deadline=time.monotonic() + 60, workdir=Path())
    run.leased = time.monotonic() - seconds
    return run


async def publish(attempts, run):
    report = {"assets": [], "metadata": {}}
    spooled = SpooledJob(job_id="a", user_id="u", token=1, attempt=1, folder=Path(), files=(), report=report)
    await attempts._publish(None, run, spooled)


async def test_a_job_is_published_at_once_while_its_lease_is_fresh(attempts, queue):
    await publish(attempts, leased_before(1))
    assert queue.asked == ["publish", "finish", "wake", "drop the checkpoint"]


async def test_the_queue_is_asked_before_publishing_when_the_lease_was_not_renewed_lately(attempts, queue):
    await publish(attempts, leased_before(LEASE / 3 + 1))
    assert queue.asked == ["check", "publish", "finish", "wake", "drop the checkpoint"]


async def test_nothing_is_published_once_the_lease_is_lost(attempts, queue):
    queue.faults = [LeaseLost("gone")]
    with pytest.raises(LeaseLost):
        await publish(attempts, leased_before(LEASE))
    assert queue.asked == ["check"]


async def test_a_run_of_which_no_lease_is_known_is_checked(attempts, queue):
    run = Run(job_id="a", user_id="u", token=1, attempt=1, deadline=time.monotonic() + 60, workdir=Path())
    await publish(attempts, run)
    assert queue.asked[0] == "check"


async def test_the_end_of_a_job_is_told_again_until_the_server_is_back(attempts, queue):
    queue.faults = [QueueUnavailable("away"), QueueUnavailable("away")]
    await publish(attempts, leased_before(1))
    assert queue.asked == ["publish", "finish", "finish", "finish", "wake", "drop the checkpoint"]


@pytest.mark.parametrize("complete", [True, False])
async def test_a_worker_that_stops_while_the_queue_is_away_keeps_what_is_spooled(attempts, queue, tmp_path, complete):
    spool = Spool(tmp_path / "spool")
    spool.open()
    run = leased_before(1)
    run.workdir = spool.folder("a", 1)
    attempts._spool = spool

    async def settle(run):
        """There are no checkpoints."""

    async def release(claim, **what):
        queue.asked.append("release")
        raise QueueUnavailable("away")

    attempts._checkpoints.settle, queue.release = settle, release

    async def work(claim, run):
        if complete:
            (run.workdir / "manifest.json").write_text("{}")
        await asyncio.sleep(60)

    task = asyncio.create_task(attempts._to_the_end(None, run, work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.workdir.exists() is complete
    assert queue.asked == ([] if complete else ["release"])
    spool.close()


async def test_a_run_that_publishes_holds_no_frames(attempts, queue, tmp_path):
    """Very many may publish at a time, each for hours."""
    made, alive = [], []

    class Pool:
        generate_lanes = 1

        def states(self):
            return []

        async def generate(self, run, model, request, plan):
            frames = np.zeros((request.frames, request.height, request.width, 3), np.uint8)
            made.append(weakref.ref(frames))
            generation = Generation(clips=(Clip(frames=frames, seed=request.seed),))
            return SimpleNamespace(generation=generation, memory=SimpleNamespace(peak_mib=0))

    class Hooks:
        def postprocess(self, media, context):
            assert media.clip is made[0]()
            return []

        def publish(self, name, file, context):
            gc.collect()
            alive.append(made[0]() is not None)
            return PublishedFile(url=file.key, file_size_bytes=file.file_size_bytes)

        def models(self):
            return MODELS

        def frame_processors(self):
            return {}

        registry = SimpleNamespace(default_model=lambda named: WAN.name)

    settings = load_settings()
    attempts._settings, attempts._stages = settings, Stages(hooks=Hooks(), pool=Pool(), settings=settings)
    attempts._tell_processing = lambda *_: None
    attempts._spool = Spool(tmp_path / "spool")
    attempts._spool.open()
    run = leased_before(0)
    run.workdir = attempts._spool.folder("a", 1)
    asked = payload({"width": 64, "height": 96, "frames": 9}, id="a")
    claim = Claim("a", json.dumps(asked), token=1, attempts=0, runs=0, seed=1, queued_at=time.time(), priority=0, entry="e")
    await attempts.work(claim, run)
    assert queue.asked == ["finish", "wake", "drop the checkpoint"]
    assert alive == [False]
    attempts._spool.close()
