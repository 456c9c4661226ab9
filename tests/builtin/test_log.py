"""Reports to the log."""

import pluggy
import pytest
from structlog.testing import capture_logs

from wan_host import hookspecs
from wan_host.builtin import log
from wan_host.report import Report

PAYLOAD = {
    "error_message": "prompt: 'a secret wish' is not allowed",
    "assets": [{"url": "workspace-temp/u1/j1/0.mp4?token=t0ken"}],
    "metadata": {"model": "tiny-wan", "enhanced_prompt": "a secret wish", "processing_time": 1.5, "reference_mode": "none"},
}


def deliver(status="completed", **metadata):
    payload = PAYLOAD | {"metadata": PAYLOAD["metadata"] | metadata}
    report = Report(job_id="j1", attempt=2, status=status, sequence=7, payload=payload)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(log)
    manager.check_pending()
    with capture_logs() as lines:
        (delivery,) = manager.hook.deliver_report(report=report, context=None)
    return delivery, lines


def test_a_report_is_one_line_and_always_accepted():
    delivery, lines = deliver()
    assert delivery.outcome == "accepted"
    assert lines == [
        {
            "event": "report",
            "log_level": "info",
            "job": "j1",
            "attempt": 2,
            "stage": "report",
            "status": "completed",
            "sequence": 7,
            "assets": 1,
            "model": "tiny-wan",
            "reference_mode": "none",
            "processing_time": 1.5,
        }
    ]


def test_a_failure_is_a_warning_with_its_type():
    _, (line,) = deliver("failed", error_type="out_of_memory")
    assert line["log_level"] == "warning"
    assert line["error_type"] == "out_of_memory"


@pytest.mark.parametrize("status", ["processing", "completed", "failed", "cancelled"])
def test_neither_prompts_nor_addresses_are_logged(status):
    _, lines = deliver(status)
    assert "wish" not in str(lines)
    assert "t0ken" not in str(lines)


def test_a_report_without_metadata_is_logged_too():
    report = Report(job_id="j1", attempt=1, status="failed", sequence=1, payload={})
    assert log.deliver_report(report).outcome == "accepted"
