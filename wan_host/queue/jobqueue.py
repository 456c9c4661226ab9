"""The job queue as the host sees it: intake, leases, fencing, and the end of a job."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from wan_host.errors import InvalidJob, LeaseLost, WanHostError
from wan_host.queue.inspection import Inspection
from wan_host.queue.keys import DEFAULT_ENTRY_LIMIT, DELIVERY_SECONDS, MOVED_A_POLL, RESERVED_SEQUENCE, intake_key
from wan_host.queue.outbox import Outbox
from wan_host.queue.records import Claim, PendingReport, Poll, Standing, Started, claim_from, poll_from, seed_of
from wan_host.queue.session import as_json, log
from wan_host.queue.transport import Reply

__all__ = ["JobQueue"]

_PUSHED: Final = 500
_PUSHED_CHARACTERS: Final = 1 << 18


class JobQueue(Outbox, Inspection):
    """A queue of jobs on Redis Streams; see `open_queue`.

    Every method raises QueueUnavailable when the server cannot be used for now (each has been tried twice by then, with one
    request id), SettingsError when it refuses the credentials. Operations on a claim raise LeaseLost when its fencing token
    is not the newest one: another worker has the job, or it has ended. A server that came back empty is told what this
    worker holds, as soon as it asks about it.
    """

    def __init__(
        self,
        *args: Any,
        entry_limit: int = DEFAULT_ENTRY_LIMIT,
        moved_a_poll: int = MOVED_A_POLL,
        fair_users: bool = False,
        **options: Any,
    ) -> None:
        """``entry_limit``: bytes of one entry; ``moved_a_poll``: entries that one poll takes in; the rest as `Session`.

        ``fair_users``: users take turns, within a priority. One worker that asks for it makes all of them do so, for an hour.
        """
        super().__init__(*args, **options)
        self._entry_limit = str(entry_limit)
        self._moved_a_poll = moved_a_poll
        self._fair = "1" if fair_users else ""
        self._epoch = ""
        self._lost_state = False
        self._idle_polls = 0
        self._next_due: float | None = None
        self._full = False
        self._said_hello = False
        self._runs: dict[tuple[str, int], Started] = {}

    async def push(self, *payloads: str | bytes) -> None:
        """Append entries to the producers' list, as producers do by RPUSH: 500 of them or 262144 characters a command.

        Raises InvalidJob if one is no UTF-8, and has pushed none then.
        """
        for texts in _parts([_text(payload) for payload in payloads]):
            await self._run("push", *texts)
        self._transport.nudge()

    async def poll(self, *, claims: int, worker: Mapping[str, str] | None = None) -> Poll:
        """Take in what producers pushed, and claim up to ``claims`` jobs, the oldest of the highest priority first: one command.

        ``worker``: what this worker says about itself (device, version, ...); given, it also counts as a sign of life.
        """
        poll = await self._poll(claims, self._moved_a_poll, worker)
        found = poll.claims or poll.moved or poll.due_reports
        self._idle_polls = 0 if found else self._idle_polls + 1
        self._next_due = poll.next_due
        self._full = claims <= 0
        self._lost_state = False
        return replace(poll, due_reports=poll.due_reports + len(self._own))

    async def _visit(self, moved: int) -> Poll:
        poll = await self._poll(0, moved, None)
        for poison in poll.poisoned:  # the worker's own polls are for the worker to speak of
            log.warning("entry went to the dead letters", reason=poison.reason, bytes=poison.size, letter=poison.letter)
        for duplicate in poll.duplicates:
            log.warning("job was pushed again", job=duplicate.job_id, status=duplicate.status, action=duplicate.action)
        return poll

    async def _poll(self, claims: int, moved: int, worker: Mapping[str, str] | None) -> Poll:
        self._said_hello = self._said_hello or worker is not None
        about = "" if worker is None else as_json({key: str(value) for key, value in worker.items()})
        args = (self.worker_id, self._lease, str(claims), str(moved), self._entry_limit, secrets.token_hex(16), about, self._fair)
        reply = await self._run("poll", *args)
        self._lost_state = self._lost_state or self._epoch not in {"", reply[1]}
        self._epoch = reply[1]
        return poll_from(reply, state_lost=self._lost_state)

    async def wait(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for something to do, as the last `poll` left things; poll again afterwards.

        Returns early when an entry came (TCP), when a lease or a delay that the last poll knew of ends (TCP), when this
        process pushed an entry. Over REST it lasts as long as the budget of an idle worker wants, from 2 s to 12.5 s, whatever
        ``timeout`` says.
        """
        if self._full and not self._transport.billed:
            await self._sleep(timeout)
            return
        if self._next_due is not None and not self._transport.billed:
            timeout = min(timeout, self._next_due)
        if await self._transport.wait(self.name, intake_key(self.name), timeout, self._idle_polls):
            self._idle_polls = 0

    async def start(self, claim: Claim) -> Started:
        """Count an attempt: call it when the run begins. A repetition for the same claim counts nothing."""
        reply = await self._of(claim, "start", str(RESERVED_SEQUENCE))
        _, counted, runs, sequence, now = reply
        started = Started(int(runs), int(counted), int(sequence), int(now) / 1000, RESERVED_SEQUENCE)
        self._runs[claim.job_id, claim.token] = started
        return started

    async def renew(
        self,
        claims: Sequence[Claim],
        progress: Mapping[str, Mapping[str, Any]] | None = None,
        worker: Mapping[str, str] | None = None,
    ) -> Mapping[str, Standing]:
        """Prolong the leases of all these claims by `lease_seconds`, and store their progress: one command.

        ``progress`` by job id; ``worker`` as in `poll`. Of every job: held, cancelled (held, but stop: finish it as cancelled),
        or lost (stop, and touch nothing).
        """
        if not claims:
            return {}
        about = "" if worker is None else as_json({key: str(value) for key, value in worker.items()})
        rows = [part for c in claims for part in (c.job_id, str(c.token), as_json((progress or {}).get(c.job_id)))]
        standings = await self._run("renew", self.worker_id, self._lease, about, *rows)
        found: dict[str, Standing] = {}
        for claim, standing in zip(claims, standings, strict=True):
            if standing == "gone":
                found[claim.job_id] = "held" if await self._restore(claim) else "lost"
            else:
                found[claim.job_id] = standing
            if found[claim.job_id] == "lost":
                self._runs.pop((claim.job_id, claim.token), None)
        return found

    async def check(self, claim: Claim) -> None:
        """Raise LeaseLost if the claim's token is not the newest one: call it before anything is published."""
        await self._of(claim, "check")

    async def finish(
        self,
        claim: Claim,
        *,
        status: Literal["published", "failed", "cancelled"],
        report: Mapping[str, Any] | None,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        dead_letter: str | None = None,
    ) -> int:
        """End a job: terminal state, report into the outbox, acknowledgement and dead letter, all or nothing.

        ``report`` gets its ``sequence`` by the queue, which is returned; the report is this worker's to deliver for 60 s
        (`due_reports` has it first). Without a report a published job is completed at once. ``dead_letter``: the reason, if it
        is to be one.
        A repetition for the same claim changes nothing and returns the same number.
        """
        delivery = str(round(DELIVERY_SECONDS * 1000))
        texts = (as_json(report), as_json(result), as_json(error))
        _, sequence, now, run = await self._of(claim, "finish", status, *texts, dead_letter or "", delivery)
        self._runs.pop((claim.job_id, claim.token), None)
        if report is not None:
            attempt = int(run or 0)  # by the queue: a renewal that crossed this has forgotten the run here
            full = {**report, "sequence": int(sequence)}
            self._keep_own(PendingReport(claim.job_id, full, int(sequence), attempt, 0, status, int(now) / 1000))
        return int(sequence)

    async def release(
        self,
        claim: Claim,
        *,
        reason: str,
        defer: float = 0,
        refund: bool = False,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Hand a job back for another attempt, by any worker, in ``defer`` seconds.

        ``refund``: the run that was started does not count (it was not the job's fault: SIGTERM, a lost device).
        """
        await self._of(claim, "release", str(round(defer * 1000)), "1" if refund else "0", reason, as_json(error))
        self._runs.pop((claim.job_id, claim.token), None)

    async def adopt(self, job_id: str, token: int, *, lost: Claim | None = None) -> Claim | None:
        """Lease a job to this worker again after a restart, if ``token`` is still its newest one; None if it is not.

        ``lost``: the claim as it was spooled; given, a server that came back empty is told about the job.
        """
        return await self._adopt(job_id, token, lost, lost.attempts if lost else 0, lost.runs if lost else 0)

    async def _restore(self, claim: Claim) -> bool:
        """Tell a server that came back empty about a job that this worker holds."""
        started = self._runs.get((claim.job_id, claim.token))
        attempts, runs = (started.counted, started.attempt) if started else (claim.attempts, claim.runs)
        restored = await self._adopt(claim.job_id, claim.token, claim, attempts, runs)
        log.error("the queue server had no memory of a job that is held here", job=claim.job_id, held=restored is not None)
        return restored is not None

    async def _adopt(self, job_id: str, token: int, lost: Claim | None, attempts: int, runs: int) -> Claim | None:
        known: tuple[str, ...] = ("0", "", "0", "0", "", "0", "0")
        if lost is not None:
            seed = "" if lost.seed is None or seed_of(lost.payload) is not None else str(lost.seed)
            queued_at = str(round(lost.queued_at * 1000))
            known = ("1", lost.payload, str(attempts), str(runs), seed, queued_at, str(lost.priority))
        reply = await self._run("adopt", self.worker_id, self._lease, job_id, str(token), *known)
        if reply[0] != "ours":
            return None
        return _adopted(job_id, token, reply)

    async def _of(self, claim: Claim, script: str, *args: str) -> Reply:
        """Run a script about a claim; raises LeaseLost when it is not ours any more."""
        for restored in (False, True):
            reply = await self._run(script, claim.job_id, str(claim.token), *args)
            standing = reply if isinstance(reply, str) else reply[0]
            if standing == "ours":
                return reply
            if standing != "gone" or restored or not await self._restore(claim):
                break
        self._runs.pop((claim.job_id, claim.token), None)
        raise LeaseLost(f"job {claim.job_id}: the lease is lost; another worker has the job, or it has ended")

    async def aclose(self) -> None:
        """Say goodbye if this worker had introduced itself, and close the connection; never raises because the server is away."""
        try:
            if self._said_hello:
                await self._run_once("workers", self.worker_id)
        except WanHostError as error:
            log.warning("the queue could not be told that this worker leaves", error=str(error))
        finally:
            await super().aclose()


def _text(payload: str | bytes) -> str:
    try:
        text = payload if isinstance(payload, str) else payload.decode()
        text.encode()
    except UnicodeError:
        raise InvalidJob("payload", payload[:40], "it must be UTF-8") from None
    return text


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divide entries so that no command is large: the server does nothing else meanwhile, and gateways limit requests."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and (len(part) == _PUSHED or size + len(text) > _PUSHED_CHARACTERS):
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _adopted(job_id: str, token: int, reply: Sequence[str]) -> Claim:
    """Build a claim from `adopt.lua`'s reply."""
    _, attempts, runs, seed, queued_at, priority, entry, cancelled, problem, payload = reply
    return claim_from((job_id, token, attempts, runs, seed, queued_at, priority, entry, cancelled, problem, payload))
