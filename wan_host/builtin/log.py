"""Reporting to the log: one line a report, without prompts and addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from wan_host.hookspecs import hookimpl
from wan_host.report import Delivery

if TYPE_CHECKING:
    from wan_host.report import Report

_METADATA = ("model", "reference_mode", "processing_time", "error_type")
_log = structlog.get_logger("wan_host.reports")


@hookimpl
def deliver_report(report: Report) -> Delivery:
    """Write one line. The log always accepts: where no other sink is configured, it is the receiver.

    Of the payload only counts and names are shown; ``error_message`` may quote a prompt, so it is not.
    """
    metadata = report.payload.get("metadata") or {}
    shown = {name: metadata[name] for name in _METADATA if name in metadata}
    level = _log.warning if report.status == "failed" else _log.info
    level(
        "report",
        job=report.job_id,
        attempt=report.attempt,
        stage="report",
        status=report.status,
        sequence=report.sequence,
        assets=len(report.payload.get("assets") or ()),
        **shown,
    )
    return Delivery(outcome="accepted", note="logged")
