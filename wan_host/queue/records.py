"""What the queue hands out, as frozen objects, and how the scripts' replies become them.

Times are the queue server's, in seconds since 1970, unless a name says otherwise. The payload is the JSON text of the job's
object exactly as its producer wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from wan_host.queue.keys import SILENCE_SECONDS

__all__ = [
    "Claim",
    "DeadLetter",
    "Depth",
    "Duplicate",
    "JobState",
    "PendingReport",
    "Poison",
    "Poll",
    "Standing",
    "Started",
    "WorkerState",
]

Standing = Literal["held", "lost", "cancelled"]


@dataclass(frozen=True)
class Claim:
    """A job that is leased to this worker.

    ``attempts``: runs that were started before, since the job was pushed or retried; at ``max_attempts`` the worker fails the job
    instead of running it. ``runs``: the same over the job's whole life. ``seed``: of the payload, else drawn once at
    intake; None if the payload's is no integer. ``problem``: ``too_large`` or ``not_utf8`` when the queue could keep only the
    id of the entry, so that the job can only be failed; else "". ``cancelled``: its cancellation was asked for already.
    """

    job_id: str
    payload: str
    token: int
    attempts: int
    runs: int
    seed: int | None
    queued_at: float
    priority: int
    entry: str
    problem: str = ""
    cancelled: bool = False


@dataclass(frozen=True)
class Poison:
    """An entry that went to the dead letters at once: nobody could have been told that it failed.

    ``reason``: ``not_json``, ``not_an_object``, ``no_id``, ``invalid_id``, ``too_large``, ``broken`` (a script failed on it), or
    ``expired`` (its state had been kept as long as it could). ``size`` in bytes; ``head``: the first kilobyte. ``letter`` names
    it among the dead letters.
    """

    letter: str
    job_id: str
    reason: str
    size: int
    head: str


@dataclass(frozen=True)
class Duplicate:
    """A pushed id that the queue knew: ``dropped`` while it waits or runs, ``reported`` when done, ``rerun`` when failed."""

    job_id: str
    status: str
    action: Literal["dropped", "reported", "rerun"]


@dataclass(frozen=True)
class Poll:
    """The answer to one poll.

    ``depth``: jobs that wait. ``next_due``: seconds until a lease, a delay or a report that is known now becomes due, None if
    there is none. ``due_reports``: reports that can be taken with `due_reports`; ``pending_reports``: those and the ones that are
    being delivered or wait for another try. ``moved``: entries taken from the producers' list.
    ``cancelled``: jobs of this worker that somebody wants cancelled. ``state_lost``: the server came back empty since the last
    poll: what waited is lost, what is running or spooled will still be delivered.
    """

    server_time: float
    depth: int
    claims: tuple[Claim, ...] = ()
    poisoned: tuple[Poison, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    due_reports: int = 0
    pending_reports: int = 0
    cancelled: frozenset[str] = frozenset()
    next_due: float | None = None
    moved: int = 0
    state_lost: bool = False


@dataclass(frozen=True)
class Started:
    """A run that was counted.

    ``attempt``: its number over the job's whole life, so that idempotency keys never repeat; ``counted``: runs of this
    submission, this one included. ``sequence``: for the first `processing` report; the ``reserved`` - 1 numbers after it are
    this run's too.
    """

    attempt: int
    counted: int
    sequence: int
    started_at: float
    reserved: int


@dataclass(frozen=True)
class PendingReport:
    """A terminal report that this worker delivers now; ``report`` has its ``sequence`` already. ``tries``: earlier tries."""

    job_id: str
    report: Mapping[str, Any]
    sequence: int
    attempt: int
    tries: int
    status: str
    since: float
    error: str = ""


@dataclass(frozen=True)
class JobState:
    """All that the queue knows of a job.

    ``status``: waiting, claimed, running, published, completed, report_refused, failed or cancelled. ``report_state``:
    "" (none yet), pending, accepted or refused. ``reason``: why the last run was handed back. ``digest``: the SHA-1 of the
    payload as it was taken in. Of a ``payload`` above 4 KiB lists have type, user_id, prompt (500 characters), model and seed; so
    has a job that has ended well and was too large to be kept.
    """

    job_id: str
    status: str
    attempts: int = 0
    runs: int = 0
    priority: int = 0
    seed: int | None = None
    queued_at: float | None = None
    claimed_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    worker: str = ""
    reason: str = ""
    cancelling: bool = False
    payload: str = ""
    digest: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    sequence: int = 0
    report_state: str = ""
    report_tries: int = 0
    report_error: str = ""
    report_note: str = ""


@dataclass(frozen=True)
class DeadLetter:
    """A job (or an entry without a usable id: ``job_id`` is "") that was given up; ``head``: the payload's first kilobyte."""

    letter: str
    job_id: str
    reason: str
    at: float
    size: int
    head: str
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class WorkerState:
    """A worker that was seen within a day; ``alive``: within its lease, or 15 s. ``jobs``: id and status of what it holds."""

    worker_id: str
    since: float
    seen: float
    alive: bool
    about: Mapping[str, str]
    jobs: Mapping[str, str]


@dataclass(frozen=True)
class Depth:
    """How much there is to do: ``waiting`` includes ``delayed``; ``leased``: claimed or running."""

    waiting: int
    delayed: int
    leased: int
    reports: int
    dead_letters: int


def json_or_none(text: str) -> Mapping[str, Any] | None:
    """Return the object of a JSON text, None for anything else."""
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def seed_of(payload: str) -> int | None:
    """Return the payload's own seed: ``config.seed``, else ``seed``, else ``metadata.seed``; None if that is no integer."""
    job = json_or_none(payload) or {}
    for holder in (job.get("config"), job, job.get("metadata")):
        seed = holder.get("seed") if isinstance(holder, dict) else None
        if seed is not None:
            return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
    return None


def claim_from(row: Sequence[Any]) -> Claim:
    """Build a claim from `poll.lua`'s row."""
    job_id, token, attempts, runs, seed, queued_at, priority, entry, cancelled, problem, payload = row
    return Claim(
        job_id=job_id,
        payload=payload,
        token=int(token),
        attempts=int(attempts or 0),
        runs=int(runs or 0),
        seed=int(seed) if seed else seed_of(payload),
        queued_at=int(queued_at or 0) / 1000,
        priority=int(priority),
        entry=entry,
        problem=problem,
        cancelled=cancelled == "1",
    )


def poll_from(reply: Sequence[Any], *, state_lost: bool) -> Poll:
    """Build the answer from `poll.lua`'s reply."""
    now, _, waiting, next_due, reports, moved, claims, poisoned, duplicates, cancelled, pending = reply
    return Poll(
        server_time=int(now) / 1000,
        depth=int(waiting),
        claims=tuple(claim_from(row) for row in claims if row[10]),
        poisoned=tuple(Poison(letter, job_id, reason, int(size), head) for letter, job_id, reason, size, head in poisoned),
        duplicates=tuple(Duplicate(*row) for row in duplicates),
        due_reports=int(reports),
        pending_reports=int(pending),
        cancelled=frozenset(cancelled),
        next_due=None if int(next_due) < 0 else int(next_due) / 1000,
        moved=int(moved),
        state_lost=state_lost,
    )


def _pairs(row: Sequence[str]) -> dict[str, str]:
    return dict(zip(row[::2], row[1::2], strict=True))


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None


def job_from(row: Sequence[str]) -> JobState:
    """Build a job's state from `jobs.lua`'s row."""
    known = _pairs(row[1:])
    payload = known.get("payload") or known.get("brief", "")
    return JobState(
        job_id=row[0],
        status=known["status"],
        attempts=int(known.get("attempts") or 0),
        runs=int(known.get("runs") or 0),
        priority=int(known.get("priority") or 0),
        seed=int(known["seed"]) if known.get("seed") else seed_of(payload),
        queued_at=_seconds(known.get("queued_at")),
        claimed_at=_seconds(known.get("claimed_at")),
        started_at=_seconds(known.get("started_at")),
        finished_at=_seconds(known.get("finished_at")),
        worker=known.get("worker", ""),
        reason=known.get("reason", ""),
        cancelling=known.get("cancel") == "1",
        payload=payload,
        digest=known.get("digest", ""),
        progress=json_or_none(known.get("progress", "")) or {},
        result=json_or_none(known.get("result", "")),
        error=json_or_none(known.get("error", "")),
        sequence=int(known.get("report_sequence") or known.get("sequence") or 0),
        report_state=known.get("report_state", ""),
        report_tries=int(known.get("report_tries") or 0),
        report_error=known.get("report_error", ""),
        report_note=known.get("report_note", ""),
    )


def report_from(row: Sequence[str]) -> PendingReport:
    """Build a pending report from `reports.lua`'s row."""
    job_id, sequence, tries, runs, status, since, error, text = row
    report = {**(json_or_none(text) or {}), "sequence": int(sequence)}
    return PendingReport(job_id, report, int(sequence), int(runs or 0), int(tries or 0), status, int(since or 0) / 1000, error)


def dead_letter_from(row: Sequence[str]) -> DeadLetter:
    """Build a dead letter from `dead.lua`'s row; its time is in the stream's id."""
    known = _pairs(row[1:])
    at = int(row[0].split("-", 1)[0]) / 1000
    size = int(known.get("size") or 0)
    return DeadLetter(row[0], known["id"], known["reason"], at, size, known.get("head", ""), json_or_none(known.get("error", "")))


def worker_from(row: Sequence[str], now: int) -> WorkerState:
    """Build a worker's state from `workers.lua`'s row; ``now`` and the row's times are in ms."""
    worker_id, since, seen, lease, about = row[:5]
    said = {key: str(value) for key, value in (json_or_none(about) or {}).items()}
    alive = now - int(seen) <= max(int(lease), SILENCE_SECONDS * 1000)
    return WorkerState(worker_id, int(since) / 1000, int(seen) / 1000, alive, said, _pairs(row[5:]))
