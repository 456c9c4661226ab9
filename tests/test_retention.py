"""Limits of the disk: what goes first, and what never goes."""

from __future__ import annotations

import os
import threading
import time

import pytest

from wan_host import retention
from wan_host.hooks import Hooks
from wan_host.plugins import discover
from wan_host.queue import JobState
from wan_host.readiness import Readiness
from wan_host.retention import Retention
from wan_host.settings import load_settings


class Queue:
    """Knows the states of jobs, and counts what it is asked."""

    backend = "tcp"

    def __init__(self):
        self.known, self.asked = {}, []

    async def states(self, job_ids):
        self.asked.append(list(job_ids))
        return {job_id: JobState(job_id, self.known[job_id]) for job_id in job_ids if job_id in self.known}


@pytest.fixture
def queue():
    return Queue()


@pytest.fixture
def place(tmp_path, queue):
    """Make the retention of the data folder, with limits."""

    def make(**limits):
        settings = load_settings().model_copy(update={"data_dir": tmp_path, "min_free_bytes": 0, **limits})
        readiness = Readiness(settings, Hooks(discover()))
        return Retention(queue=queue, settings=settings, readiness=readiness), readiness

    return make


def put(path, size, hours):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


@pytest.fixture
def published(tmp_path, queue):
    """Put a job where the local publisher does: two files, 1,000 bytes together."""

    def make(job_id, hours, status="completed", user="user-1"):
        folder = tmp_path / "outputs" / "workspace-temp" / user / job_id
        put(folder / "0.mp4", 900, hours)
        put(folder / "0.thumb.webp", 100, hours)
        if status is not None:
            queue.known[job_id] = status
        return folder

    return make


async def test_without_limits_everything_stays_and_nobody_is_asked(place, queue, published):
    folder = published("old", 10_000)
    await place()[0].limit_outputs()
    assert folder.is_dir()
    assert queue.asked == []


async def test_whole_jobs_go_oldest_first_until_the_quota_is_kept(place, published):
    jobs = [published(f"job-{hours}", hours, user=f"user-{hours % 2}") for hours in (5, 4, 3, 2, 1)]
    await place(outputs_max_bytes=2999)[0].limit_outputs()
    assert [folder.is_dir() for folder in jobs] == [False, False, False, True, True]
    assert not list(jobs[0].parent.glob("job-5*"))


async def test_jobs_that_are_too_old_go_and_younger_ones_stay(place, published):
    old, young = published("old", 49), published("young", 47)
    await place(outputs_hours=48)[0].limit_outputs()
    assert (old.is_dir(), young.is_dir()) == (False, True)


@pytest.mark.parametrize("status", ["published", "report_refused", "waiting", "claimed", "running"])
async def test_what_is_not_delivered_stays_over_any_limit(place, published, status):
    kept, gone = published("kept", 500, status), published("gone", 400)
    await place(outputs_max_bytes=1, outputs_hours=1)[0].limit_outputs()
    assert (kept.is_dir(), gone.is_dir()) == (True, False)


async def test_a_job_that_the_queue_has_forgotten_goes_when_no_report_can_be_on_its_way(place, published):
    young, old = published("young", 23, None), published("old", 25, None)
    await place(outputs_hours=1, report_hours=24)[0].limit_outputs()
    assert (young.is_dir(), old.is_dir()) == (True, False)


async def test_a_job_that_is_published_again_while_the_queue_answers_stays(place, published, queue, monkeypatch):
    folder, states = published("again", 50), queue.states

    async def answer(job_ids):
        put(folder / "0.mp4", 900, 0)
        return await states(job_ids)

    monkeypatch.setattr(queue, "states", answer)
    await place(outputs_hours=1)[0].limit_outputs()
    assert (folder / "0.mp4").exists()


async def test_the_disk_is_not_read_on_the_event_loop(place, published, monkeypatch):
    jobs, readers, read = [published(f"job-{hours}", hours) for hours in (3, 2)], set(), retention._item

    def noted(path):
        readers.add(threading.current_thread())
        return read(path)

    monkeypatch.setattr(retention, "_item", noted)
    await place(outputs_max_bytes=1)[0].limit_outputs()
    assert [folder.is_dir() for folder in jobs] == [False, False]
    assert readers
    assert threading.current_thread() not in readers


async def test_the_queue_is_asked_about_the_oldest_and_not_about_everything(place, published, queue, monkeypatch):
    monkeypatch.setattr("wan_host.retention._ASKED", 2)
    for hours in range(1, 9):
        published(f"job-{hours}", hours)
    await place(outputs_max_bytes=5500)[0].limit_outputs()
    assert queue.asked == [["job-8", "job-7"], ["job-6", "job-5"]]


def test_old_checkpoints_and_torn_ones_go(place, tmp_path):
    folder = tmp_path / "checkpoints"
    for name, hours in (("old.safetensors", 49), ("young.safetensors", 47), ("a.safetensors.12.part", 2), ("b.part", 0)):
        put(folder / name, 10, hours)
    place()[0].limit_spool()
    assert sorted(path.name for path in folder.iterdir()) == ["b.part", "young.safetensors"]


def test_checkpoints_make_room_for_the_spool_oldest_first(place, tmp_path):
    put(tmp_path / "spool" / "12-ab" / "job-1.7" / "0.mp4", 600, 100)
    for name, hours in (("a", 3), ("b", 2), ("c", 1)):
        put(tmp_path / "checkpoints" / f"{name}.safetensors", 200, hours)
    limits, readiness = place(spool_max_bytes=1000)
    limits.limit_spool()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["b.safetensors", "c.safetensors"]
    assert readiness.has_room


def test_a_spool_over_its_quota_is_kept_and_stops_new_jobs_until_it_is_delivered(place, tmp_path):
    file = tmp_path / "spool" / "12-ab" / "job-1.7" / "0.mp4"
    put(file, 2000, 100)
    put(tmp_path / "checkpoints" / "a.safetensors", 200, 1)
    limits, readiness = place(spool_max_bytes=1000)
    limits.limit_spool()
    assert file.exists()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not readiness.has_room
    (problem,) = [item for item in readiness.problems([], [], stopping=False) if item.startswith("spool")]
    assert problem == "spool: 2,000 bytes wait to be delivered, WAN_HOST_SPOOL_MAX_BYTES allows 1,000"
    file.unlink()
    limits.limit_spool()
    assert readiness.has_room
