"""The report of a job's progress or end, as it goes to the receivers, and what became of it there."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

ReportStatus = Literal["processing", "completed", "failed"]
DeliveryOutcome = Literal["accepted", "retry", "refused"]
_LONGEST_WAIT: Final = 24 * 3600.0


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

    def headers(self, body: bytes, secret: str | None) -> dict[str, str]:
        """Return what every delivery by HTTP carries; with a secret, ``X-Callback-Signature`` covers the bytes of ``body``."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.idempotency_key}
        if secret is not None:
            headers["X-Callback-Signature"] = f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a receiver made of a report.

    ``accepted``: it has it. ``retry``: it may take it later (408, 425, 429, 5xx, network faults), after ``retry_after``
    seconds where it said so. ``refused``: it will never take it (any other 4xx). ``note`` is kept with the job.
    """

    outcome: DeliveryOutcome
    note: str = ""
    retry_after: float | None = None


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds (0 to a day) that a Retry-After header asks for, as a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return min(max(0.0, seconds), _LONGEST_WAIT) if math.isfinite(seconds) else None
