"""Finished work on disk, between its encoding and the moment the store and the queue have it.

Every worker process owns one folder under ``{data_dir}/spool``, held by a file lock for as long as the process lives. A job's
folder in it is its working folder; once ``manifest.json`` stands there, nothing of the job needs to be generated again. Folders
whose lock is free belonged to processes that died: the next worker takes over what is complete and removes the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from wan_host.errors import PluginError
from wan_host.media import OutputFile

MANIFEST = "manifest.json"
LOCK = "lock"
_NAMES_TRIED = 20
log = structlog.get_logger("wan_host.spool")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledJob:
    """A job that only needs to be published and reported.

    ``report`` is the completed report whose assets still lack their urls; ``token`` is the fencing token of the run. ``claim``
    are the fields of its claim, for a queue server that has lost its memory.
    """

    job_id: str
    user_id: str
    token: int
    attempt: int
    folder: Path
    files: tuple[OutputFile, ...]
    report: Mapping[str, Any]
    claim: Mapping[str, Any] = field(default_factory=dict)


class Spool:
    """The spool folders of one data folder."""

    def __init__(self, root: Path) -> None:
        """``root`` is created when the spool is opened."""
        self.root = root
        self._own = root
        self._lock: int | None = None

    def open(self) -> None:
        """Create and lock this process's folder.

        Until it is locked another worker may take it for a dead one's and remove it: then the next name is tried.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for _ in range(_NAMES_TRIED):
            self._own = self.root / f"{os.getpid()}-{secrets.token_hex(4)}"
            self._own.mkdir(mode=0o700)
            self._lock = _lock(self._own)
            if self._lock is not None:
                return
        raise OSError(f"no folder in {self.root} can be locked")

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
        """Make a job's result outlive this process.

        Nothing is forced to the disk: that costs more than the rest of the host's work together. The manifest holds a digest of
        every file instead, so what a power failure leaves torn is noticed and generated again.
        """
        manifest = {
            "job_id": job.job_id,
            "user_id": job.user_id,
            "token": job.token,
            "attempt": job.attempt,
            "report": job.report,
            "claim": job.claim,
            "files": [
                {
                    "asset_index": file.asset_index,
                    "role": file.role,
                    "name": _name_within(job.folder, file),
                    "key": file.key,
                    "content_type": file.content_type,
                    "file_size_bytes": file.file_size_bytes,
                    "digest": _digest(file.path),
                }
                for file in job.files
            ],
        }
        unfinished = job.folder / f"{MANIFEST}.part"
        unfinished.write_text(json.dumps(manifest, allow_nan=False), encoding="utf-8")
        unfinished.rename(job.folder / MANIFEST)

    def is_complete(self, folder: Path) -> bool:
        """Tell whether nothing of the job in a folder needs to be generated again."""
        return (folder / MANIFEST).exists()

    def remove(self, folder: Path) -> None:
        """Forget a run."""
        shutil.rmtree(folder, ignore_errors=True)

    def take_over(self) -> list[SpooledJob]:
        """Move the complete jobs of dead processes into this process's folder and return them; remove what they left else."""
        taken = []
        for other in sorted(self.root.iterdir()):
            if other == self._own or not other.is_dir():
                continue
            lock = _lock(other)
            if lock is None:
                continue
            try:
                for manifest in sorted(other.glob(f"*/{MANIFEST}")):
                    job = self._take(manifest.parent)
                    if job is not None:
                        taken.append(job)
                shutil.rmtree(other, ignore_errors=True)
            finally:
                os.close(lock)
        return taken

    def _take(self, left: Path) -> SpooledJob | None:
        """Move a job's folder here; None where its manifest or a file of it is damaged, so that it must be made anew."""
        folder = self._own / left.name
        if folder.exists():  # tokens start anew where a queue server came back empty
            folder = folder.with_name(f"{left.name}.{secrets.token_hex(4)}")
        try:
            left.rename(folder)
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("spooled job is damaged, dropped", folder=str(left), error=f"{type(error).__name__}: {error}")
            shutil.rmtree(folder, ignore_errors=True)
            return None


def _lock(folder: Path) -> int | None:
    """Lock a process's folder for as long as the descriptor is open; None where another has it, or it is gone."""
    try:
        descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:  # gone by now, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(folder / LOCK).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116  # beside fstat
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _name_within(folder: Path, file: OutputFile) -> str:
    """Return a file's path below the job's folder. Raises PluginError for one that stands elsewhere: it would not be kept."""
    if not file.path.is_relative_to(folder):
        raise PluginError(f"the {file.role} of asset {file.asset_index} is not in the job's work folder: {file.path}")
    return str(file.path.relative_to(folder))


def _read(folder: Path) -> SpooledJob:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for file in manifest["files"]:
        if _digest(folder / file["name"]) != file["digest"]:
            raise ValueError(f"{file['name']} is not what was written")
    return SpooledJob(
        job_id=manifest["job_id"],
        user_id=manifest["user_id"],
        token=manifest["token"],
        attempt=manifest["attempt"],
        folder=folder,
        report=manifest["report"],
        claim=manifest["claim"],
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
