"""What may stay on the disk, and for how long: published files, the spool, checkpoints.

Nothing is deleted that somebody still waits for. Published files go with their whole job, oldest first, and only when the queue
says that the job's end was delivered. Of the spool only checkpoints go; where that is not enough, the worker takes no jobs.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import structlog

from wan_host.errors import PermanentError, QueueUnavailable
from wan_host.queue import JobQueue, JobState
from wan_host.readiness import Readiness
from wan_host.settings import Settings

_SPOOL_SECONDS = 5.0
_OUTPUTS_SECONDS = 60.0
_BILLED_OUTPUTS_SECONDS = 600.0
_ASKED = 500
_ASKED_A_ROUND = 10
_PART_SECONDS = 3600.0
_DELIVERED = frozenset({"completed", "failed", "cancelled"})
log = structlog.get_logger("wan_host.retention")


@dataclass(frozen=True, slots=True)
class Item:
    """A file or folder that is kept or deleted as a whole; ``changed`` is when the last of it was written (Unix seconds)."""

    path: Path
    size: int
    changed: float


class Retention:
    """The limits of one data folder. Several workers may enforce them at once."""

    def __init__(self, *, queue: JobQueue, settings: Settings, readiness: Readiness) -> None:
        """``readiness`` is told when the spool is over its quota."""
        self._queue, self._settings, self._readiness = queue, settings, readiness
        self._complained = False

    async def keep_limits(self) -> None:
        """Look again and again, for ever."""
        pause = _BILLED_OUTPUTS_SECONDS if self._queue.backend == "upstash" else _OUTPUTS_SECONDS
        looked = float("-inf")
        while True:
            await self.look_at_spool()
            try:
                if time.monotonic() - looked >= pause:
                    looked = time.monotonic()
                    await self.limit_outputs()
            except QueueUnavailable:
                pass  # nothing is deleted unless the queue says so
            except (PermanentError, OSError) as error:
                log.warning("limits of the disk could not be kept", error=str(error))
            await asyncio.sleep(_SPOOL_SECONDS)

    async def look_at_spool(self) -> None:
        """`limit_spool` in a thread; where the disk does not let it, that is logged."""
        try:
            await asyncio.to_thread(self.limit_spool)
        except OSError as error:
            log.warning("limits of the spool could not be kept", error=str(error))

    def limit_spool(self) -> None:
        """Delete checkpoints that are too old, then, oldest first, as many as the quota wants; say whether it is kept."""
        checkpoints, old = self._settings.checkpoints_path, time.time() - self._settings.checkpoint_hours * 3600
        kept = []
        for item in _items(checkpoints):
            unfinished = item.path.suffix == ".part" and item.changed < time.time() - _PART_SECONDS
            if unfinished or item.changed < old:
                _delete(item, "checkpoint deleted: it is old")
            else:
                kept.append(item)
        limit = self._settings.spool_max_bytes
        if limit is None:
            return
        total = sum(item.size for item in (*_items(self._settings.spool_path), *kept))
        for item in sorted(kept, key=lambda item: item.changed):
            if total <= limit:
                break
            _delete(item, "checkpoint deleted: the spool is over its quota")
            total -= item.size
        over = f"spool: {total:,} bytes wait to be delivered, WAN_HOST_SPOOL_MAX_BYTES allows {limit:,}" if total > limit else ""
        self._readiness.spool_checked(over)

    async def limit_outputs(self) -> None:
        """Delete published jobs that are too old, then, oldest first, as many as the quota wants. Raises QueueUnavailable."""
        limit, hours = self._settings.outputs_max_bytes, self._settings.outputs_hours
        if limit is None and hours is None:
            return
        jobs = await asyncio.to_thread(lambda: sorted(self._published(), key=lambda item: item.changed))
        old = float("-inf") if hours is None else time.time() - hours * 3600
        total = sum(item.size for item in jobs)
        over = 0
        for start in range(0, min(len(jobs), _ASKED * _ASKED_A_ROUND), _ASKED):
            some = jobs[start : start + _ASKED]
            if some[0].changed >= old and (limit is None or total <= limit):
                break
            states = await self._queue.states([item.path.name for item in some])
            for item in some:
                if item.changed >= old and (limit is None or total <= limit):
                    break
                if await asyncio.to_thread(self._delete_delivered, item, states):
                    total -= item.size
                else:
                    over += 1
        self._complain(over, total)

    def _published(self) -> Iterator[Item]:
        """Yield the jobs of the local publisher: ``{outputs}/{bucket}/{user_id}/{job_id}``."""
        for user in _folders(self._settings.outputs_path / self._settings.bucket):
            yield from _items(user)

    def _delete_delivered(self, item: Item, states: Mapping[str, JobState]) -> bool:
        """Delete a job whose end has reached everybody; one that the queue has forgotten must be older than any report gets."""
        state = states.get(item.path.name)
        if state is None:
            delivered = item.changed < time.time() - self._settings.report_hours * 3600
        else:
            delivered = state.status in _DELIVERED and _item(item.path) == item  # not published again since
        if delivered:
            _delete(item, "published job deleted")
        return delivered

    def _complain(self, over: int, total: int) -> None:
        if over and not self._complained:
            log.warning("published files stay over their limit until they are delivered", jobs=over, bytes=total)
        self._complained = bool(over)


def _folders(folder: Path) -> list[Path]:
    try:
        return [item for item in folder.iterdir() if item.is_dir() and not item.is_symlink()]
    except FileNotFoundError:
        return []


def _items(folder: Path) -> Iterator[Item]:
    """Yield what stands in a folder, each with all that it holds."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return
    yield from (item for path in paths if (item := _item(path)) is not None)


def _item(path: Path) -> Item | None:
    """Return a file, or a folder with all that it holds; None where it disappears meanwhile."""
    try:
        found = path.lstat()
        if not path.is_dir():
            return Item(path, found.st_size, found.st_mtime)
        files = [status for file in path.rglob("*") if not S_ISDIR((status := file.lstat()).st_mode)]
    except FileNotFoundError:
        return None
    return Item(path, sum(file.st_size for file in files), max((file.st_mtime for file in files), default=found.st_mtime))


def _delete(item: Item, event: str) -> None:
    if item.path.is_dir():
        shutil.rmtree(item.path, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)
    log.info(event, path=str(item.path), bytes=item.size, hours=round((time.time() - item.changed) / 3600, 1))
