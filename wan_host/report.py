"""The report of a job's progress or end, as it goes to the receivers, and what became of it there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ReportStatus = Literal["processing", "completed", "failed"]
DeliveryOutcome = Literal["accepted", "retry", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report. ``payload`` is the JSON object of the wire contract; it holds neither NaN nor infinity.

    ``sequence`` grows within a job: a receiver may drop what has a lower one than it has seen. ``idempotency_key`` is the
    same for every delivery of this report.
    """

    job_id: str
    attempt: int
    status: ReportStatus
    sequence: int
    payload: Mapping[str, Any]

    @property
    def idempotency_key(self) -> str:
        """``{id}:{attempt}:{status}``."""
        return f"{self.job_id}:{self.attempt}:{self.status}"

    def body(self) -> bytes:
        """Return the payload as strict JSON in UTF-8: the bytes that a signature covers. Half surrogate pairs become ``?``."""
        return json.dumps(self.payload, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a receiver made of a report.

    ``accepted``: it has it. ``retry``: it may take it later (408, 425, 429, 5xx, network faults), after ``retry_after``
    seconds where it said so. ``refused``: it will never take it (any other 4xx). ``note`` is kept with the job.
    """

    outcome: DeliveryOutcome
    note: str = ""
    retry_after: float | None = None
