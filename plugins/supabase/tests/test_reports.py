"""Reports: what the function gets, and what its answers come to."""

from __future__ import annotations

import time

import pytest
from wan_host_supabase.reports import JobCallback

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, FORGED_KEY, SERVICE_KEY
from wan_host import Report
from wan_host.context import StageContext

FUNCTION = "/functions/v1/job-callback"
ASSET = {"type": "video", "url": "workspace-temp/u1/job1/0.mp4", "thumbnail_url": "workspace-temp/u1/job1/0.thumb.webp"}


def report(status="completed", **values):
    payload = {"job_id": "job1", "worker_id": "w", "status": status, "assets": [ASSET], "prompt": "größer", **values}
    return Report(job_id="job1", attempt=2, status=status, sequence=7, payload=payload)


@pytest.fixture
def deliver(settings, context):
    callbacks = []

    def make(sent=None, **values):
        callbacks.append(JobCallback(settings(**values)))
        return callbacks[-1].deliver(sent or report(), context)

    yield make
    for callback in callbacks:
        callback.close()


@pytest.mark.parametrize("status", ["processing", "completed", "failed"])
def test_a_report_arrives_signed_and_with_its_idempotency_key(project, deliver, status):
    delivery = deliver(report(status))
    assert (delivery.outcome, delivery.note) == ("accepted", "job-callback: 200 OK")
    ((payload, key),) = project.reports
    assert payload == report(status).payload
    assert key == f"job1:2:{status}"
    headers = project.asked[0].headers
    assert (headers["authorization"], headers["apikey"]) == (f"Bearer {SERVICE_KEY}", SERVICE_KEY)


def test_a_report_that_the_receiver_skipped_is_accepted_and_noted(project, deliver):
    project.known_jobs = {"another"}
    delivery = deliver()
    assert delivery.outcome == "accepted"
    assert "skipped" in delivery.note


def test_without_a_project_there_is_no_sink(deliver):
    assert deliver(supabase_url=None) is None


def test_without_the_key_the_report_is_kept_for_a_worker_that_has_it(project, deliver):
    delivery = deliver(supabase_service_role_key=None)
    assert (delivery.outcome, delivery.note) == ("retry", "job-callback needs SUPABASE_SERVICE_ROLE_KEY")
    assert not project.asked


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"job_callback_secret": "another"}, "JOB_CALLBACK_SECRET is another one there"),
        ({"job_callback_secret": None}, "JOB_CALLBACK_SECRET is not set here"),
        ({"supabase_service_role_key": FORGED_KEY}, "is SUPABASE_SERVICE_ROLE_KEY the service role key of this project?"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_mend(deliver, values, advice):
    delivery = deliver(**values)
    assert delivery.outcome == "refused"
    assert advice in delivery.note


def test_a_function_that_is_not_deployed_is_named(project, deliver):
    project.fail("POST", FUNCTION, "status", 404)
    delivery = deliver()
    assert (delivery.outcome, "deployed?" in delivery.note) == ("refused", True)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, 546])
def test_what_may_pass_is_retried(project, deliver, status):
    project.fail("POST", FUNCTION, "status", status)
    assert deliver().outcome == "retry"


@pytest.mark.parametrize("status", [301, 400, 409, 422])
def test_any_other_answer_is_final(project, deliver, status):
    project.fail("POST", FUNCTION, "status", status)
    assert deliver().outcome == "refused"


@pytest.mark.parametrize("how", ["reset", "reset_after", "hang", "hang_after"])
def test_a_fault_of_the_network_is_retried(project, deliver, how):
    project.fail("POST", FUNCTION, how)
    assert deliver(callback_timeout=0.3).outcome == "retry"


def test_a_receiver_that_cannot_be_reached_is_retried(deliver):
    delivery = deliver(supabase_url="http://127.0.0.1:9")
    assert (delivery.outcome, "cannot be reached" in delivery.note) == ("retry", True)


def test_a_report_ends_at_its_deadline(project, settings, tmp_path):
    project.fail("POST", FUNCTION, "hang")
    context = StageContext(job_id="job1", user_id="", workdir=tmp_path, deadline=time.monotonic() + 0.3)
    begun = time.monotonic()
    assert JobCallback(settings(callback_timeout=30)).deliver(report(), context).outcome == "retry"
    assert time.monotonic() - begun < 1.5


def test_an_asset_without_url_is_never_sent(project, deliver):
    delivery = deliver(report(assets=[ASSET, {"type": "video"}]))
    assert (delivery.outcome, delivery.note.startswith("asset 1 has no url")) == ("refused", True)
    assert not project.asked


def test_a_page_instead_of_the_function_is_accepted_by_its_status(project, deliver):
    project.fail("POST", FUNCTION, "page")
    assert deliver().outcome == "accepted"


def test_no_secret_is_in_a_note(project, deliver):
    project.fail("POST", FUNCTION, "quote")
    note = deliver().note
    assert SERVICE_KEY not in note
    assert CALLBACK_SECRET not in note
    assert "(hidden)" in note


def test_connections_are_kept_between_reports(project, settings, context):
    callback = JobCallback(settings())
    for _ in range(3):
        callback.deliver(report(), context)
    callback.close()
    assert len({asked.peer for asked in project.asked}) == 1
