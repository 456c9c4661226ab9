"""Batches: many jobs from one file or list, and prompts times parameter grids.

An entry is a job as producers write it, but for two things. It may have a ``grid``, which maps fields to lists of values and
stands for one job per combination::

    {"id": "cats", "type": "video_fast", "user_id": "me",
     "grid": {"prompt": ["a cat", "two cats"], "config.guidance_scale": [4, 6], "config.seed": [1, 2, 3]}}

And it may leave out its id. Such a job, and every job of a grid, gets one that follows from its content: ``cats-`` or ``batch-``
and twelve hexadecimal digits. The same batch has the same ids whenever it is read, and a grid that has grown keeps those it had.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from wan_host.errors import InvalidJob, shown
from wan_host.payload import Payload, PayloadConfig, PayloadMetadata, parse_payload

MAX_JOBS = 10_000
_DIGITS = 12
_FIELDS = frozenset(
    {
        *(set(Payload.model_fields) - {"id", "config", "metadata"}),
        *(f"config.{name}" for name in PayloadConfig.model_fields),
        *(f"metadata.{name}" for name in PayloadMetadata.model_fields),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job of a batch, checked as far as that is possible without models.

    ``place`` counts from 1: the line of a file of JSON Lines, else the position in the list. ``text`` is what goes to the queue.
    """

    place: int
    payload: Payload
    text: str

    @property
    def id(self) -> str:
        """The job's id."""
        return self.payload.id

    def is_job(self, digest: str) -> bool:
        """Tell whether the SHA-1 of a payload is this one's."""
        return digest == hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProblem:
    """What is wrong with the entry at ``place``."""

    place: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The jobs of a batch in their order, and what is wrong with the entries that gave none."""

    jobs: tuple[BatchJob, ...]
    problems: tuple[BatchProblem, ...]


def read_batch(text: str | bytes, *, max_bytes: int) -> Batch:
    """Return the batch in a file: one entry, a JSON array of entries, or JSON Lines; empty lines do not count."""
    try:
        document = text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _nothing(f"byte {error.start} is no UTF-8; a batch is JSON in UTF-8")
    try:
        whole = _parse(document)
    except InvalidJob as error:
        fault = error
    else:
        entries = enumerate(whole, start=1) if isinstance(whole, list) else ((1, whole),)
        return expand_batch(entries, max_bytes=max_bytes)
    lines = [(number, line) for number, line in enumerate(document.split("\n"), start=1) if line.strip()]
    if not lines:
        return _nothing("there is no job in it")
    parsed = [(number, _parsed_line(line)) for number, line in lines]
    if all(isinstance(value, InvalidJob) for _, value in parsed):  # one document that is broken, rather than lines
        return _nothing(str(fault))
    return expand_batch(parsed, max_bytes=max_bytes)


def expand_batch(
    entries: Iterable[tuple[int, object]], *, max_bytes: int, max_jobs: int = MAX_JOBS, max_total_bytes: int | None = None
) -> Batch:
    """Return the jobs of entries, which come with their places; ``max_bytes``: what the queue takes for one job.

    An entry that is wrong in itself, or one of whose jobs is wrong, gives no job but a problem. An InvalidJob in the place
    of an entry is such a problem already. So is an entry beyond ``max_jobs`` (those of wrong entries count as well: this bounds
    the work), which is refused before any of its jobs is made, and one beyond ``max_total_bytes`` for the texts of all jobs.
    """
    jobs: dict[str, BatchJob] = {}
    problems = []
    begun = total = 0
    for place, entry in entries:
        size = _size(entry)
        try:
            if begun + size > max_jobs:
                field, what = ("grid", f"{size} combinations") if size > max_jobs else ("batch", f"{begun + size} jobs")
                raise InvalidJob(field, what, f"a batch has at most {max_jobs} jobs")
            begun += size
            found, length = {}, total
            for job in _jobs_of(entry, place, jobs, max_bytes):
                length += len(job.text)
                if max_total_bytes is not None and length > max_total_bytes:
                    raise InvalidJob("batch", f"{length} bytes", f"its jobs have together at most {max_total_bytes} bytes")
                found[job.id] = job
        except InvalidJob as error:
            problems.append(BatchProblem(place=place, message=str(error)))
        else:
            jobs |= found
            total = length
    return Batch(jobs=tuple(jobs.values()), problems=tuple(problems))


def same_payload(left: str, right: str) -> bool:
    """Tell whether two texts of the queue are the same job, however they are written."""
    try:
        return bool(json.loads(left) == json.loads(right))
    except (ValueError, RecursionError):
        return False


def _jobs_of(entry: object, place: int, earlier: MutableMapping[str, BatchJob], max_bytes: int) -> Iterator[BatchJob]:
    if isinstance(entry, InvalidJob):
        raise entry
    if not isinstance(entry, dict):
        raise InvalidJob("payload", entry, "it must be a JSON object")
    known: ChainMap[str, BatchJob] = ChainMap({}, earlier)
    for payload, given in _payloads(entry):
        try:
            text = json.dumps(payload, allow_nan=False, separators=(",", ":"))
        except (ValueError, RecursionError) as error:  # values of Python that are no JSON, when a program calls
            raise InvalidJob("payload", type(error).__name__, "it must be JSON") from None
        if len(text) > max_bytes:
            raise InvalidJob("payload", f"{len(text)} bytes", f"at most {max_bytes} (WAN_HOST_MAX_ENTRY_BYTES)")
        job = BatchJob(place=place, payload=parse_payload(text), text=text)
        if job.id in known:
            what = (
                "every job needs an id of its own" if given else "it is the same job; give one of them an id or a seed of its own"
            )
            raise InvalidJob("id", job.id, f"the entry at {known[job.id].place} has it; {what}")
        known[job.id] = job
        yield job


def _payloads(entry: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the payloads of an entry, and whether it gave their id itself."""
    base = {name: value for name, value in entry.items() if name != "grid"}
    if "grid" not in entry:
        yield (base, True) if base.get("id") is not None else (_named(base, "batch"), False)
        return
    prefix = base.pop("id", "batch")
    if not isinstance(prefix, str):
        raise InvalidJob("id", prefix, "it must be a text: the beginning of the ids of the grid's jobs")
    axes = _axes(entry["grid"], base)
    for values in itertools.product(*axes.values()):
        payload = dict(base)
        for field, value in zip(axes, values, strict=True):
            group, _, name = field.rpartition(".")
            if group:
                payload[group] = {**(payload.get(group) or {}), name: value}
            else:
                payload[name] = value
        yield _named(payload, prefix), False


def _size(entry: object) -> int:
    """Count the jobs that an entry stands for, be it right or wrong."""
    grid = entry.get("grid") if isinstance(entry, dict) else None
    return math.prod(len(values) for values in grid.values() if isinstance(values, list)) if isinstance(grid, dict) else 1


def _axes(grid: object, base: Mapping[str, Any]) -> dict[str, list[Any]]:
    if not isinstance(grid, dict) or not grid:
        raise InvalidJob("grid", grid, 'it must map fields to lists of values, such as {"config.seed": [1, 2]}')
    for field, values in grid.items():
        if field not in _FIELDS:
            close = difflib.get_close_matches(field, sorted(_FIELDS), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise InvalidJob(f"grid.{field[:100]}", values, f"there is no such field of a payload{hint}")
        if not isinstance(values, list) or not values:
            raise InvalidJob(f"grid.{field}", values, "it must be a list of at least one value")
        group, _, name = field.rpartition(".")
        holder = base.get(group) if group else base
        if holder is not None and not isinstance(holder, dict):
            raise InvalidJob(group, holder, "it must be a JSON object")
        if holder is not None and holder.get(name) is not None:
            raise InvalidJob(f"grid.{field}", values, f"the entry says {field}: {shown(holder[name])} as well; give one of them")
    return grid


def _named(payload: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    content = {name: value for name, value in payload.items() if name != "id"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return {"id": f"{prefix}-{digest[:_DIGITS]}", **content}


def parse_json(text: str | bytes) -> object:
    """Return what a JSON text says. Raises ValueError, also for NaN and infinity, and RecursionError."""
    return json.loads(text, parse_constant=_refuse_constant)


def _parse(text: str) -> object:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidJob("payload", text[:200], f"it must be a JSON object ({error})") from None


def _parsed_line(line: str) -> object:
    try:
        return _parse(line)
    except InvalidJob as error:
        return error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _nothing(message: str) -> Batch:
    return Batch(jobs=(), problems=(BatchProblem(place=1, message=message),))
