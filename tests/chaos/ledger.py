"""The books: what went in against what came out, as the queue, the store, the receiver and the model saw it."""

from __future__ import annotations

import io
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.chaos.plan import Options, PlannedJob
from wan_host.context import StageContext
from wan_host.encoding import encode_asset
from wan_host.model import MediaKind
from wan_host.queue.records import DeadLetter, JobState
from wan_host.testing import instant
from wan_host.testing.outside import Arrival

LOST_BY_CHAOS = frozenset({"attempts_exhausted", "lane_crashed", "lane_hung", "reference_unreachable"})
"""What a job that could have succeeded may die of when everything around it is killed again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything that was written down. ``pushes``: how often each id reached the queue or may have."""

    options: Options
    jobs: Sequence[PlannedJob]
    pushes: Counter[str]
    poison: Counter[str]
    states: Sequence[JobState]
    letters: Sequence[DeadLetter]
    arrivals: Sequence[Arrival]
    objects: dict[str, bytes]
    puts: Sequence[tuple[str, bytes]]
    runs: Sequence[tuple[str, int]]


@dataclass(slots=True)
class Balance:
    """What reconciling found: the count of every end, and every line that does not add up."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def reconcile(books: Books, folder: Path) -> Balance:
    """Check every promise; ``folder`` is for encoding what should have been published."""
    balance = Balance()
    states = {state.job_id: state for state in books.states}
    _ends(books, states, balance)
    _dead_letters(books, states, balance)
    _runs(books, states, balance)
    _reports(books, states, balance)
    _published(books, states, balance, folder)
    return balance


def _ends(books: Books, states: dict[str, JobState], balance: Balance) -> None:
    """Jobs in = completed + dead letters + cancelled, each id once."""
    if len(states) != len(books.states):
        balance.wrong.append("the queue lists an id twice")
    for stranger in states.keys() - {job.id for job in books.jobs}:
        balance.wrong.append(f"{stranger}: nobody pushed it")
    for job in books.jobs:
        state = states.get(job.id)
        if state is None:
            balance.wrong.append(f"{job.id}: lost")
            continue
        balance.ends[state.status] += 1
        allowed = {"completed", "failed"} if job.can_succeed else {"failed"}
        if job.cancel_at is not None:
            allowed = allowed | {"cancelled"}
        if state.status not in allowed:
            balance.wrong.append(f"{job.id}: ended as {state.status} ({state.error}), allowed {sorted(allowed)}")
        elif state.status == "failed" and job.can_succeed and (state.error or {}).get("error_type") not in LOST_BY_CHAOS:
            balance.wrong.append(f"{job.id}: failed with {state.error}")


def _dead_letters(books: Books, states: dict[str, JobState], balance: Balance) -> None:
    """One letter for every failed job and for every poisonous entry, and no other."""
    letters = Counter(letter.job_id for letter in books.letters if letter.job_id)
    failed = {job_id for job_id, state in states.items() if state.status == "failed"}
    for job_id in letters.keys() ^ failed:
        balance.wrong.append(f"{job_id}: {letters[job_id]} dead letters, status {states[job_id].status}")
    balance.wrong += [f"{job_id}: {count} dead letters" for job_id, count in letters.items() if count > 1]
    poison = Counter(letter.head for letter in books.letters if not letter.job_id)
    for text, pushes in books.poison.items():
        if not 1 <= poison[text] <= pushes:
            balance.wrong.append(f"poison {text}: {poison[text]} dead letters of {pushes} pushes")
    balance.ends["poison"] = sum(poison.values())


def _runs(books: Books, states: dict[str, JobState], balance: Balance) -> None:
    """No run twice, and no more runs than attempts allow; a push of a failed id counts anew."""
    counted = Counter(books.runs)
    balance.wrong += [f"{run[0]}: attempt {run[1]} was run {times} times" for run, times in counted.items() if times > 1]
    by_job = Counter(job_id for job_id, _ in books.runs)
    for job_id, times in by_job.items():
        allowed = books.options.max_attempts * max(1, books.pushes[job_id])
        if times > allowed:
            balance.wrong.append(f"{job_id}: {times} runs, {allowed} allowed")
    told = {
        (item.report["job_id"], item.report["metadata"]["attempt"]) for item in books.arrivals if _status(item) == "processing"
    }
    for job_id, attempt in told | set(counted):
        if job_id in states and attempt > states[job_id].runs:
            balance.wrong.append(f"{job_id}: attempt {attempt} was started, the queue counted {states[job_id].runs}")
    balance.ends["runs"] = len(books.runs)


def _status(arrival: Arrival) -> str:
    return str(arrival.report["status"])


def _reports(books: Books, states: dict[str, JobState], balance: Balance) -> None:
    """A receiver that drops what is older than it has seen ends with the truth; one report has one key and one content."""
    by_job: dict[str, list[Arrival]] = defaultdict(list)
    contents: dict[str, set[str]] = defaultdict(set)
    for arrival in books.arrivals:
        report = arrival.report
        by_job[report["job_id"]].append(arrival)
        contents[arrival.key].add(repr(sorted((key, value) for key, value in report.items() if key != "sequence")))
    for key, texts in contents.items():
        if len(texts) > 1:
            balance.wrong.append(f"report {key} had {len(texts)} contents")
    for job_id, state in states.items():
        accepted = [item for item in by_job[job_id] if item.accepted]
        last = max(accepted, key=lambda item: int(item.report["sequence"]), default=None)
        if last is None:
            balance.wrong.append(f"{job_id}: ended as {state.status}, and nobody was told")
            continue
        expected = "completed" if state.status == "completed" else "failed"
        if _status(last) != expected or last.report["sequence"] != state.sequence:
            told, sequence = _status(last), last.report["sequence"]
            balance.wrong.append(
                f"{job_id}: ended as {state.status} ({state.sequence}), the receiver was last told {told} ({sequence})"
            )
        ends = {item.key for item in by_job[job_id] if _status(item) != "processing"}
        if len(ends) > max(1, books.pushes[job_id]):
            balance.wrong.append(f"{job_id}: {len(ends)} different ends were reported: {sorted(ends)}")
        completed = {item.report["metadata"]["attempt"] for item in by_job[job_id] if _status(item) == "completed"}
        if len(completed) > 1:
            balance.wrong.append(f"{job_id}: completed by several attempts: {sorted(completed)}")
        if completed and max(completed) != state.runs:
            balance.wrong.append(f"{job_id}: completed by attempt {max(completed)}, and run again: {state.runs} runs")


def _published(books: Books, states: dict[str, JobState], balance: Balance, folder: Path) -> None:
    """Every completed job has exactly the files that its report names, with the bytes of its seed and reference."""
    sets: dict[str, dict[str, bytes]] = defaultdict(dict)
    for key, data in books.objects.items():
        user, job_id, name = key.split("/")
        if user != "chaos":
            balance.wrong.append(f"{key}: a file of nobody's")
        sets[job_id][name] = data
    versions: dict[str, set[bytes]] = defaultdict(set)
    for key, data in books.puts:
        versions[key].add(data)
    balance.wrong += [f"{key}: {len(data)} different versions were uploaded" for key, data in versions.items() if len(data) > 1]
    planned = {job.id: job for job in books.jobs}
    for job_id in sets.keys() - planned.keys():
        balance.wrong.append(f"{job_id}: files of a job that nobody pushed")
    for job_id, state in states.items():
        if state.status == "completed" and job_id in planned:
            balance.wrong += _set_faults(planned[job_id], state, sets[job_id], folder)


def _set_faults(job: PlannedJob, state: JobState, found: dict[str, bytes], folder: Path) -> list[str]:
    (asset,) = (state.result or {}).get("assets", [None])
    if asset is None:
        return [f"{job.id}: completed without a result"]
    urls = [asset["url"], *([asset["thumbnail_url"]] if "thumbnail_url" in asset else [])]
    if sorted(found) != sorted(url.rsplit("/", 1)[1] for url in urls):
        return [f"{job.id}: the store holds {sorted(found)}, the report names {urls}"]
    about: dict[str, Any] = asset["metadata"]
    name = asset["url"].rsplit("/", 1)[1]
    expected = expected_file(job.reference or b"", name, about, folder)
    given = job.payload["config"].get("seed")
    faults = [] if given in {None, about["seed"]} else [f"{job.id}: seed {about['seed']}, asked for {given}"]
    return faults + ([] if found[name] == expected else [f"{job.id}: {name} is not what its seed and reference make"])


def expected_file(reference: bytes, name: str, about: dict[str, Any], folder: Path) -> bytes:
    """Make anew what a job should have made; ``about``: the asset's metadata in the report."""
    with Image.open(io.BytesIO(reference)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width, _ = pixels.shape
    clip = instant.draw(width, height, about["frames"], about["seed"], pixels)
    context = StageContext(job_id="expected", user_id="", workdir=folder, deadline=time.monotonic() + 60)
    kind: MediaKind = "image" if name.endswith(".png") else "video"
    fps = int(about["fps"]) or 1
    # Every planned job is in mode single, whose first frame shows the reference and is coded finer.
    made = encode_asset(clip, asset_index=0, kind=kind, fps=fps, workdir=folder, context=context, finer=(0,))
    return made.path.read_bytes()
