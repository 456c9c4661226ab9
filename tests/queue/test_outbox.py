"""Terminal reports on their way to the receiver."""

from __future__ import annotations

import asyncio

import pytest

from tests.queue.entries import REPORT, claimed
from wan_host.queue import outbox


@pytest.fixture
async def finished(queue):
    claim = await claimed(queue)
    await queue.start(claim)
    await queue.finish(claim, status="published", report=REPORT)
    return queue


async def test_the_worker_that_finished_the_job_has_the_report_at_once_and_without_a_command(finished):
    before = finished.commands
    (report,) = await finished.due_reports()
    assert finished.commands == before
    assert report.report == {**REPORT, "sequence": report.sequence}
    assert (report.attempt, report.tries, report.status) == (1, 0, "published")
    assert await finished.due_reports() == []


async def test_a_renewal_that_crosses_the_end_of_a_job_leaves_the_report_its_run(queue, open_):
    claim = await claimed(queue)
    await queue.start(claim)
    other = await open_()  # the same worker's end of the job, whose answer comes later than that of the renewal
    await other.finish(claim, status="published", report=REPORT)
    assert await queue.renew([claim]) == {"a": "lost"}
    await queue.finish(claim, status="published", report=REPORT)
    (report,) = await queue.due_reports()
    assert report.attempt == 1


async def test_an_accepted_report_completes_the_job(finished):
    (report,) = await finished.due_reports()
    await finished.report_accepted(report, "skipped")
    state = await finished.job("a")
    assert (state.status, state.report_state, state.report_note) == ("completed", "accepted", "skipped")
    assert (await finished.depth()).reports == 0


async def test_a_report_of_a_failed_job_leaves_it_failed(queue):
    claim = await claimed(queue)
    await queue.finish(claim, status="failed", report=REPORT, error={"error_type": "x"}, dead_letter="attempts_exhausted")
    (report,) = await queue.due_reports()
    await queue.report_accepted(report)
    state = await queue.job("a")
    assert (state.status, state.report_state) == ("failed", "accepted")
    (letter,) = await queue.dead_letters()
    assert (letter.job_id, letter.reason, letter.error) == ("a", "attempts_exhausted", {"error_type": "x"})


async def test_a_report_that_is_to_be_tried_again_comes_to_any_worker_after_its_delay(finished, open_):
    other = await open_("w2")
    (report,) = await finished.due_reports()
    assert await finished.report_retry(report, 0.1, "503") == 1
    assert await other.due_reports() == []
    poll = await other.poll(claims=0)
    assert (poll.due_reports, poll.pending_reports) == (0, 1), "it waits for its next try, and is still owed"
    await asyncio.sleep(0.12)
    assert (await other.poll(claims=0)).due_reports == 1
    (again,) = await other.due_reports()
    assert (again.tries, again.error, again.sequence, again.attempt) == (1, "503", report.sequence, 1)
    assert await finished.due_reports() == []
    assert await other.report_accepted(again) == 0
    assert await other.report_accepted(again) == 0, "a repetition"
    assert (await other.job("a")).status == "completed"
    assert (await other.poll(claims=0)).pending_reports == 0


async def test_a_report_whose_deliverer_died_comes_to_another_worker(open_, monkeypatch):
    from wan_host.queue import jobqueue

    monkeypatch.setattr(jobqueue, "DELIVERY_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "DELIVERY_SECONDS", 0.1)
    dying, other = await open_("w1"), await open_("w2")
    await dying.finish(await claimed(dying), status="published", report=REPORT)
    assert await other.due_reports() == []
    await asyncio.sleep(0.12)
    assert [report.job_id for report in await other.due_reports()] == ["a"]
    assert await other.due_reports() == []
    await asyncio.sleep(0.12)
    assert [report.job_id for report in await other.due_reports()] == ["a"]


async def test_a_refused_report_is_kept_and_can_be_sent_anew(finished):
    (report,) = await finished.due_reports()
    await finished.report_refused(report, "404 \ud83d")
    state = await finished.job("a")
    assert (state.status, state.report_state, state.report_error) == ("report_refused", "refused", "404 ?")
    assert await finished.retry("a")
    (again,) = await finished.due_reports()
    assert again.sequence > report.sequence
    await finished.report_accepted(again)
    assert (await finished.job("a")).status == "completed"


async def test_what_became_of_an_older_report_changes_nothing(finished):
    (report,) = await finished.due_reports()
    await finished.report_refused(report, "404")
    await finished.retry("a")
    await finished.report_accepted(report)
    assert (await finished.job("a")).status == "published"


async def test_a_report_with_a_nan_is_refused_before_anything_happens(queue):
    claim = await claimed(queue)
    with pytest.raises(ValueError, match="JSON"):
        await queue.finish(claim, status="published", report={"x": float("nan")})
    await queue.check(claim)
