"""Finished work on disk: what a killed process leaves, and who may take it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wan_host.errors import PluginError
from wan_host.media import OutputFile
from wan_host.spool import LOCK, MANIFEST, Spool, SpooledJob

WORKER = """
import sys
from pathlib import Path
from tests.test_spool import finished
from wan_host.spool import Spool

spool = Spool(Path(sys.argv[1]))
spool.open()
for job_id, complete in zip(sys.argv[2::2], sys.argv[3::2]):
    job = finished(spool, job_id)
    if complete == "yes":
        spool.write(job)
print("ready", flush=True)
sys.stdin.read()
"""


def finished(spool, job_id="job-1", token=7, report=None, names=("0.mp4", "thumb/0.webp")):
    """A job whose files are written, but not yet its manifest."""
    folder = spool.folder(job_id, token)
    files = []
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (100 + index))
        files.append(
            OutputFile(
                job_id=job_id,
                user_id="user-1",
                asset_index=0,
                role=("asset", "thumbnail")[index],
                path=path,
                key=f"user-1/{job_id}/{Path(name).name}",
                content_type="video/mp4",
                file_size_bytes=100 + index,
            )
        )
    return SpooledJob(
        job_id=job_id,
        user_id="user-1",
        token=token,
        attempt=2,
        folder=folder,
        files=tuple(files),
        report=report or {"status": "completed", "metadata": {"seed": 2**62}},
    )


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.open()
    yield spool
    spool.close()


@pytest.fixture
def start(tmp_path):
    """Start other worker processes with jobs: (job id, complete) pairs."""
    processes = []

    def start(*jobs):
        arguments = [word for job_id, complete in jobs for word in (job_id, "yes" if complete else "no")]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path / "spool"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def abandon(root, *job_ids):
    """Leave what a process leaves whose lock the system has released."""
    other = Spool(root)
    other.open()
    for job_id in job_ids:
        other.write(finished(other, job_id))
    os.close(other._lock)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_what_a_killed_process_had_finished_is_taken_over_whole(start, tmp_path):
    kill(start(("job-1", True)))
    spool = Spool(tmp_path / "spool")
    spool.open()
    (job,) = spool.take_over()
    assert (job.job_id, job.user_id, job.token, job.attempt) == ("job-1", "user-1", 7, 2)
    assert job.report == {"status": "completed", "metadata": {"seed": 2**62}}
    assert [(file.role, file.key, file.file_size_bytes) for file in job.files] == [
        ("asset", "user-1/job-1/0.mp4", 100),
        ("thumbnail", "user-1/job-1/0.webp", 101),
    ]
    assert [file.path.stat().st_size for file in job.files] == [100, 101]
    assert spool.take_over() == []
    spool.remove(job.folder)
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_a_killed_process_had_not_finished_is_removed(start, spool):
    kill(start(("done", True), ("half", False)))
    assert [job.job_id for job in spool.take_over()] == ["done"]
    assert len(list(spool.root.iterdir())) == 1
    assert not list(spool.root.glob("*/half*"))


def test_a_living_process_keeps_its_folder(start, spool):
    process = start(("job-1", True), ("half", False))
    assert spool.take_over() == []
    assert len(list(spool.root.glob("*/*/0.mp4"))) == 2
    kill(process)
    assert [job.job_id for job in spool.take_over()] == ["job-1"]


def test_what_two_processes_left_goes_to_one_successor_and_on_to_the_next(start, tmp_path, spool):
    kill(start(("a", True)))
    kill(start(("b", True)))
    assert sorted(job.job_id for job in spool.take_over()) == ["a", "b"]
    spool.close()
    successor = Spool(tmp_path / "spool")
    successor.open()
    assert sorted(job.job_id for job in successor.take_over()) == ["a", "b"]
    successor.close()


def test_the_same_name_left_by_two_processes_is_kept_twice(spool):
    abandon(spool.root, "a")
    abandon(spool.root, "a")
    jobs = spool.take_over()
    assert [job.job_id for job in jobs] == ["a", "a"]
    assert len({job.folder for job in jobs}) == 2
    assert all(file.path.is_file() for job in jobs for file in job.files)


@pytest.mark.parametrize("job_id", ["..a", ".hidden", "-rf", "a" * 128, "lock", "manifest.json", "UPPER", "a.1"])
def test_odd_but_legal_ids_make_the_round(spool, job_id):
    spool.write(finished(spool, job_id))
    spool.close()
    successor = Spool(spool.root)
    successor.open()
    assert [job.job_id for job in successor.take_over()] == [job_id]
    successor.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).write_text(""),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff"),
        lambda folder: (folder / "0.mp4").unlink(),
        lambda folder: (folder / "0.mp4").write_bytes(b"short"),
    ],
)
def test_damaged_work_is_dropped_and_the_rest_is_taken(spool, damage):
    abandon(spool.root, "bad", "good")
    damage(next(spool.root.glob("*/bad.7")))
    assert [job.job_id for job in spool.take_over()] == ["good"]
    assert not list(spool.root.glob("*/bad*"))


def test_a_file_that_a_power_failure_left_torn_is_noticed_although_its_size_is_right(spool):
    abandon(spool.root, "torn", "good")
    file = next(spool.root.glob("*/torn.7/0.mp4"))
    file.write_bytes(bytes(file.stat().st_size))
    assert [job.job_id for job in spool.take_over()] == ["good"]


def test_a_report_that_is_no_strict_json_leaves_no_manifest(spool):
    job = finished(spool, report={"metadata": {"loss": float("nan")}})
    with pytest.raises(ValueError, match="JSON compliant"):
        spool.write(job)
    assert not (job.folder / MANIFEST).exists()


def test_a_file_outside_the_working_folder_is_refused_because_it_would_not_last(spool, tmp_path):
    elsewhere = tmp_path / "x.webp"
    elsewhere.write_bytes(b"x")
    job = finished(spool, names=("0.mp4",))
    (file,) = job.files
    stray = OutputFile(**{name: getattr(file, name) for name in file.__slots__} | {"path": elsewhere})
    with pytest.raises(PluginError, match="the asset of asset 0 is not in the job's work folder"):
        spool.write(SpooledJob(**{name: getattr(job, name) for name in job.__slots__} | {"files": (stray,)}))


def test_the_folder_of_a_run_is_new_and_empty(spool):
    folder = spool.folder("a", 1)
    (folder / "left").write_text("x")
    assert list(spool.folder("a", 1).iterdir()) == []
    assert spool.folder("a", 2) != folder


def test_an_empty_spool_leaves_nothing_behind(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.open()
    spool.folder("half", 1)
    spool.close()
    spool.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_folder_that_is_taken_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool")
    mkdir, stolen = Path.mkdir, []

    def steal(path, *args, **options):
        mkdir(path, *args, **options)
        if path.parent == spool.root and not stolen:
            stolen.append(path)
            shutil.rmtree(path)

    monkeypatch.setattr(Path, "mkdir", steal)
    spool.open()
    folder = spool.folder("a", 1)
    assert folder.is_dir()
    assert folder.parent != stolen[0]
    spool.close()


def test_a_folder_that_cannot_be_locked_at_all_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(BlockingIOError()))
    spool = Spool(tmp_path / "spool")
    with pytest.raises(OSError, match="can be locked"):
        spool.open()
    spool.close()


def test_folders_that_vanish_while_others_start_are_passed_over(spool, monkeypatch):
    (spool.root / "1-gone").mkdir()
    (spool.root / "a file").write_text("x")
    opened = os.open

    def vanish(path, *args, **options):
        if Path(path) == spool.root / "1-gone" / LOCK:
            shutil.rmtree(spool.root / "1-gone")
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", vanish)
    assert spool.take_over() == []


def test_the_manifest_is_readable_json(spool):
    job = finished(spool)
    spool.write(job)
    manifest = json.loads((job.folder / MANIFEST).read_text())
    assert set(manifest) == {"job_id", "user_id", "token", "attempt", "report", "claim", "files"}
    assert [file["name"] for file in manifest["files"]] == ["0.mp4", "thumb/0.webp"]
