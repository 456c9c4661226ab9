"""Finished work on disk, between its encoding and the moment the store and the queue have it.

Every worker process owns one folder under ``{data_dir}/spool``, held by a file lock for as long as the process lives. A job's
folder in it is its working folder; once ``manifest.json`` stands there, nothing of the job needs to be generated again. Folders
whose lock is free belonged to processes that died: the next worker takes over what is complete and removes the rest.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_host.media import OutputFile

MANIFEST = "manifest.json"
LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledJob:
    """A job that only needs to be published and reported.

    ``report`` is the completed report whose assets still lack their urls; ``token`` is the fencing token of the run.
    """

    job_id: str
    user_id: str
    token: int
    attempt: int
    folder: Path
    files: tuple[OutputFile, ...]
    report: Mapping[str, Any]


class Spool:
    """The spool folders of one data folder."""

    def __init__(self, root: Path) -> None:
        """``root`` is created when the spool is opened."""
        self.root = root
        self._own = root / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: int | None = None

    def open(self) -> None:
        """Create and lock this process's folder."""
        self._own.mkdir(parents=True, mode=0o700)
        self._lock = os.open(self._own / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Give this process's folder back; what is complete in it stays for the next worker."""
        if self._lock is None:
            return
        if not any(self._own.glob(f"*/{MANIFEST}")):
            shutil.rmtree(self._own, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def folder(self, job_id: str, token: int) -> Path:
        """Return the new, empty working folder of a run."""
        folder = self._own / f"{job_id}.{token}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def write(self, job: SpooledJob) -> None:
        """Make a job's result last: every file and the manifest reach the disk before this returns."""
        for file in job.files:
            _sync(file.path)
        manifest = {
            "job_id": job.job_id,
            "user_id": job.user_id,
            "token": job.token,
            "attempt": job.attempt,
            "report": job.report,
            "files": [
                {
                    "asset_index": file.asset_index,
                    "role": file.role,
                    "name": file.path.name,
                    "key": file.key,
                    "content_type": file.content_type,
                    "file_size_bytes": file.file_size_bytes,
                }
                for file in job.files
            ],
        }
        unfinished = job.folder / f"{MANIFEST}.part"
        unfinished.write_text(json.dumps(manifest, allow_nan=False), encoding="utf-8")
        _sync(unfinished)
        unfinished.rename(job.folder / MANIFEST)
        _sync(job.folder)

    def remove(self, folder: Path) -> None:
        """Forget a run."""
        shutil.rmtree(folder, ignore_errors=True)

    def take_over(self) -> list[SpooledJob]:
        """Move the complete jobs of dead processes into this process's folder and return them; remove what they left else."""
        taken = []
        for other in sorted(self.root.iterdir()):
            if other == self._own or not other.is_dir():
                continue
            lock = os.open(other / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                for manifest in sorted(other.glob(f"*/{MANIFEST}")):
                    folder = self._own / manifest.parent.name
                    manifest.parent.rename(folder)
                    taken.append(_read(folder))
                shutil.rmtree(other, ignore_errors=True)
            finally:
                os.close(lock)
        return taken


def _read(folder: Path) -> SpooledJob:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return SpooledJob(
        job_id=manifest["job_id"],
        user_id=manifest["user_id"],
        token=manifest["token"],
        attempt=manifest["attempt"],
        folder=folder,
        report=manifest["report"],
        files=tuple(
            OutputFile(
                job_id=manifest["job_id"],
                user_id=manifest["user_id"],
                asset_index=file["asset_index"],
                role=file["role"],
                path=folder / file["name"],
                key=file["key"],
                content_type=file["content_type"],
                file_size_bytes=file["file_size_bytes"],
            )
            for file in manifest["files"]
        ),
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
