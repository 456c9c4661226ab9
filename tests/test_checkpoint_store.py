"""Where checkpoints live: beside the queue's data, and in the store for other machines. They cost time at most, never a job."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_checkpoint import MODEL, request
from wan_host.checkpoint import Checkpoint, read, step_of, write
from wan_host.checkpoint_store import CheckpointStore
from wan_host.errors import GenerationFailed, LaneCrashed, PublishFailed, PublishRefused, ReferenceRejected
from wan_host.media import PublishedFile
from wan_host.run import Run
from wan_host.settings import load_settings


class Store:
    """Stands for the hooks of a store that publishes and reads back."""

    registry = SimpleNamespace(records=[SimpleNamespace(name="wan21", version="1.0")])

    def __init__(self):
        self.files, self.fault, self.published = {}, None, []

    def publish(self, plugin, file, context):
        if self.fault is not None:
            raise self.fault
        self.files[f"bucket/{file.key}"] = file.path.read_bytes()
        self.published.append(file.role)
        return PublishedFile(url=f"bucket/{file.key}", file_size_bytes=file.file_size_bytes)

    def fetch_reference(self, uri, context):
        if self.fault is not None:
            raise self.fault
        if uri not in self.files:
            raise ReferenceRejected("not there")
        return self.files[uri]


@pytest.fixture
def hooks():
    return Store()


@pytest.fixture
def place(tmp_path, monkeypatch, hooks):
    """Make the checkpoint store of one machine."""

    def make(machine="one", **settings):
        values = {"data_dir": tmp_path / machine, "checkpoint_every": 5, "checkpoint_store": True, "bucket": "bucket", **settings}
        return CheckpointStore(hooks=hooks, settings=load_settings().model_copy(update=values))

    return make


@pytest.fixture
def new_run(tmp_path):
    def make(attempt=1, token=1):
        workdir = tmp_path / f"work-{attempt}-{time.monotonic_ns()}"
        workdir.mkdir()
        deadline = time.monotonic() + 60
        return Run(job_id="job-1", user_id="user-1", token=token, attempt=attempt, deadline=deadline, workdir=workdir)

    return make


URI = "bucket/user-1/job-1/checkpoint.safetensors"


def saved(plan, run, step):
    """Do what a lane does, and say so."""
    from pathlib import Path

    write(Path(plan.path), Checkpoint(step=step, arrays={"a": np.zeros(4)}), plan.identity)
    run.checkpointed("saved", step, "")


async def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def there(hooks, tmp_path):
    (tmp_path / "there").write_bytes(hooks.files.get(URI, b""))
    return step_of(tmp_path / "there")


async def test_nothing_is_kept_unless_it_is_set_and_where_no_other_attempt_can_follow(place, new_run):
    assert await place(checkpoint_every=None).prepare(new_run(), MODEL, request()) is None
    assert await place().prepare(new_run(token=0), MODEL, request()) is None


async def test_the_plan_names_the_job_the_versions_and_a_file_in_the_data_folder(place, new_run, tmp_path):
    plan = await place().prepare(new_run(), MODEL, request())
    assert plan.path == str(tmp_path / "one" / "checkpoints" / "job-1.safetensors")
    assert (plan.every, plan.identity["job"], plan.identity["runner"]) == (5, "job-1", "wan21 1.0")


async def test_another_machine_goes_on_from_the_newest_copy_and_the_end_of_the_job_removes_both(place, new_run, hooks, tmp_path):
    first = new_run()
    plan = await place("one").prepare(first, MODEL, request())
    saved(plan, first, 5)
    await until(lambda: there(hooks, tmp_path) == 5)
    saved(plan, first, 10)
    await until(lambda: there(hooks, tmp_path) == 10)

    other, second = place("two"), new_run(attempt=2)
    plan = await other.prepare(second, MODEL, request())
    assert read(tmp_path / "two/checkpoints/job-1.safetensors", plan.identity).step == 10
    await other.drop(second)
    assert not list((tmp_path / "two/checkpoints").iterdir())
    assert hooks.files[URI] == b"this job has ended\n"
    third = new_run(attempt=3)
    await place("three").prepare(third, MODEL, request())
    assert not (tmp_path / "three/checkpoints").exists()


async def test_the_copy_in_the_store_does_not_replace_a_later_one_that_is_here(place, new_run, hooks, tmp_path):
    store, run = place(), new_run()
    plan = await store.prepare(run, MODEL, request())
    saved(plan, run, 5)
    await until(lambda: there(hooks, tmp_path) == 5)
    hooks.fault = PublishFailed("down")
    saved(plan, run, 10)
    await store.settle(run)
    hooks.fault = None
    await store.prepare(new_run(attempt=2), MODEL, request())
    assert step_of(tmp_path / "one/checkpoints/job-1.safetensors") == 10


@pytest.mark.parametrize("fault", [PublishFailed("down"), PublishRefused("never"), RuntimeError("a bug")])
async def test_a_store_that_fails_fails_no_job(place, new_run, hooks, fault):
    hooks.fault = fault
    store, run = place(), new_run(attempt=2)
    plan = await store.prepare(run, MODEL, request())
    saved(plan, run, 5)
    await until(lambda: not store._copies)
    await store.drop(run)


async def test_a_copy_that_is_on_its_way_arrives_before_the_job_is_handed_on(place, new_run, hooks, tmp_path, monkeypatch):
    publish = hooks.publish

    def slowly(*args):
        time.sleep(0.3)
        return publish(*args)

    monkeypatch.setattr(hooks, "publish", slowly)
    store, run = place(), new_run()
    saved(await store.prepare(run, MODEL, request()), run, 5)
    await store.settle(run)
    assert there(hooks, tmp_path) == 5


@pytest.mark.parametrize(
    "case",
    [
        (0, LaneCrashed("killed"), True),
        (5, LaneCrashed("killed"), False),
        (0, GenerationFailed("NaN"), False),
        (5, PublishFailed("down"), True),
    ],
)
async def test_a_checkpoint_that_may_be_to_blame_is_not_tried_again(place, new_run, tmp_path, case):
    (resumed, error, stays), store, run = case, place(checkpoint_store=False), new_run()
    saved(await store.prepare(run, MODEL, request()), run, 5)
    if resumed:
        run.checkpointed("resumed", resumed, "")
    await store.distrust(run, error)
    assert (tmp_path / "one/checkpoints/job-1.safetensors").exists() is stays


async def test_a_store_that_hangs_does_not_hold_a_job_that_has_ended(place, new_run, hooks, tmp_path, monkeypatch):
    monkeypatch.setattr("wan_host.checkpoint_store._ENDED_SECONDS", 0.1)
    store, run, release = place(), new_run(), threading.Event()
    saved(await store.prepare(run, MODEL, request()), run, 5)
    await until(lambda: there(hooks, tmp_path) == 5 and not store._copies)
    monkeypatch.setattr(hooks, "publish", lambda *_: release.wait(20))
    started = time.monotonic()
    await store.drop(run)
    assert time.monotonic() - started < 5
    release.set()


async def test_a_checkpoint_that_disappears_while_it_is_copied_is_not_copied(place, new_run, hooks, monkeypatch):
    store, run = place(), new_run()
    plan = await store.prepare(run, MODEL, request())

    def gone(path, frozen):
        raise FileNotFoundError(path)

    monkeypatch.setattr("wan_host.checkpoint_store._freeze", gone)
    saved(plan, run, 5)
    await until(lambda: not store._copies)
    assert hooks.published == []


async def test_a_cancelled_job_leaves_no_checkpoint_in_the_store(place, new_run, hooks, tmp_path):
    def refuses_when_cancelled(plugin, file, context):
        context.check()
        return Store.publish(hooks, plugin, file, context)

    hooks.publish = refuses_when_cancelled
    run, store = new_run(), place()
    saved(await store.prepare(run, MODEL, request()), run, 5)
    await until(lambda: there(hooks, tmp_path) == 5)
    run.cancel()
    await store.drop(run)
    assert there(hooks, tmp_path) == 0


async def test_a_disk_that_fails_changes_nothing_of_how_a_job_ended(place, new_run, monkeypatch):
    run, store = new_run(), place()
    saved(await store.prepare(run, MODEL, request()), run, 5)

    def fail(self, **_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.unlink", fail)
    await store.drop(run)
