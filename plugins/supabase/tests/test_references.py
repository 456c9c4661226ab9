"""References: what is the user's own arrives, everything else is refused before the store hears of it."""

from __future__ import annotations

import contextlib
import posixpath
import threading
import time
from urllib.parse import unquote

import pytest
from hypothesis import given, strategies as st
from wan_host_supabase import patience
from wan_host_supabase.references import fetch, own_path

from plugins.supabase.tests.stand_in import EXPIRED_KEY, FORGED_KEY, Stored
from wan_host import JobCancelled, ReferenceRejected, ReferenceUnreachable
from wan_host.context import StageContext

OWN = "workspace-temp/u1/job0/0.png"
GET = "/storage/v1/object/workspace-temp"


@pytest.fixture(autouse=True)
def stored(project, monkeypatch):
    monkeypatch.setattr(patience.backoff, "__defaults__", (0.02, 0.1))
    for bucket, key in (
        ("workspace-temp", "u1/job0/0.png"),
        ("workspace-temp", "u2/secret.png"),
        ("user-library", "u1/my photo (1) & more?.png"),
        ("results", "u1/0.png"),
    ):
        project.objects[bucket, key] = Stored(f"{bucket}/{key}".encode(), "image/png", "no-cache")


@pytest.mark.parametrize("uri", [OWN, "user-library/u1/my photo (1) & more?.png"])
def test_a_file_of_the_jobs_own_user_is_read(uri, context, settings):
    assert fetch(uri, context, settings()) == uri.encode()


def test_the_bucket_that_is_published_to_is_read_as_well(context, settings):
    assert fetch("results/u1/0.png", context, settings(bucket="results")) == b"results/u1/0.png"


@pytest.mark.parametrize(
    "uri", ["results/u1/0.png", "some/where/else.png", "gs://bucket/file.png", "ftp://host/file", "file.png"]
)
def test_what_is_in_none_of_the_buckets_is_left_to_others(project, uri, context, settings):
    assert fetch(uri, context, settings()) is None
    assert not project.asked


def test_without_a_project_nothing_is_claimed(context, settings):
    assert fetch(OWN, context, settings(supabase_url=None)) is None


@pytest.mark.parametrize(
    "uri",
    [
        "workspace-temp/u2/secret.png",
        "workspace-temp/u1",
        "workspace-temp/u1/",
        "workspace-temp",
        "workspace-temp/",
        "workspace-temp/U1/job0/0.png",
        "workspace-temp/u11/0.png",
        "workspace-temp/u1/../u2/secret.png",
        "workspace-temp/u1/./../u2/secret.png",
        "workspace-temp/../workspace-temp/u2/secret.png",
        "workspace-temp/u1/..%2fu2/secret.png",
        "workspace-temp/u1/%2e%2e/u2/secret.png",
        "workspace-temp/u1/%252e%252e/u2/secret.png",
        "workspace-temp%2fu2/secret.png",
        "%77orkspace-temp/u2/secret.png",
        "workspace-temp/u1\\..\\u2/secret.png",
        "workspace-temp//u2/secret.png",
        "/workspace-temp/u2/secret.png",
        "./workspace-temp/u2/secret.png",
        "workspace-temp/u1/\u2025/u2/secret.png",
        "workspace-temp/u1/secret.png\n",
        "workspace-temp/u1/ ../u2/secret.png",
        "workspace-temp/u1/secret.png#x",
        "workspace-temp/u1/\x00.png",
    ],
)
def test_another_users_file_is_refused_however_its_path_is_spelled(project, uri, context, settings):
    with pytest.raises(ReferenceRejected):
        fetch(uri, context, settings())
    assert not project.asked


PARTS = ["workspace-temp", "user-library", "u1", "u2", "a.png", "..", ".", "", " ", "%2e%2e", "%2f", "\\", "..;", "u1?", "\u2044"]


@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=7), slash=st.sampled_from(["/", "//", "%2f", "\\"]))
def test_no_spelling_of_a_path_leads_out_of_the_users_folder(parts, slash):
    with contextlib.suppress(ReferenceRejected):
        path = own_path(slash.join(parts), "u1", {"workspace-temp", "user-library"})
        assert posixpath.normpath(unquote(path)) == path
        assert path.startswith(("workspace-temp/u1/", "user-library/u1/"))


def test_a_refusal_says_what_the_user_may_read(context, settings):
    with pytest.raises(ReferenceRejected, match=r"'workspace-temp/u2/secret.png' belongs to another user .* workspace-temp/u1/"):
        fetch("workspace-temp/u2/secret.png", context, settings())


def test_a_job_without_a_user_reads_nothing(settings, tmp_path):
    nobody = StageContext(job_id="job1", user_id="", workdir=tmp_path, deadline=time.monotonic() + 5)
    with pytest.raises(ReferenceRejected):
        fetch("workspace-temp//secret.png", nobody, settings())


def test_a_question_mark_in_a_name_is_no_query(project, context, settings):
    fetch("user-library/u1/my photo (1) & more?.png", context, settings())
    assert project.asked[-1].path.endswith("more?.png")


def test_what_is_not_there_is_refused(context, settings):
    with pytest.raises(ReferenceRejected, match="it is not there"):
        fetch("workspace-temp/u1/absent.png", context, settings())


@pytest.mark.parametrize("how", ["stuck", "endless"])
def test_what_is_larger_than_allowed_is_refused_before_it_is_read(project, context, settings, how):
    project.fail("GET", GET, how, 5_000_000, times=100)
    with pytest.raises(ReferenceRejected, match="larger than the 1,000 bytes"):
        fetch(OWN, context, settings(reference_max_bytes=1000))


@pytest.mark.parametrize("key", [FORGED_KEY, EXPIRED_KEY])
def test_a_wrong_key_is_named(context, settings, key):
    with pytest.raises(ReferenceRejected, match="SUPABASE_SERVICE_ROLE_KEY") as caught:
        fetch(OWN, context, settings(supabase_service_role_key=key))
    assert key not in str(caught.value)


def test_a_missing_key_is_named(context, settings):
    with pytest.raises(ReferenceRejected, match="SUPABASE_SERVICE_ROLE_KEY set"):
        fetch(OWN, context, settings(supabase_service_role_key=None))


@pytest.mark.parametrize("how", ["status", "reset_after", "hang"])
def test_a_fault_that_passes_is_borne(project, context, settings, how):
    project.fail("GET", GET, how, 503)
    assert fetch(OWN, context, settings()) == OWN.encode()


def test_a_store_that_stays_down_is_worth_another_attempt(project, context, settings):
    project.fail("GET", GET, "status", 503, times=100)
    with pytest.raises(ReferenceUnreachable, match="could not be read: the storage answered 503"):
        fetch(OWN, context, settings())


def test_a_reference_that_does_not_come_in_time_is_worth_another_attempt(project, context, settings):
    project.fail("GET", GET, "hang", times=100)
    begun = time.monotonic()
    with pytest.raises(ReferenceUnreachable, match="in time"):
        fetch(OWN, context, settings(reference_timeout=0.3, timeout=30))
    assert time.monotonic() - begun < 1.5


def test_a_cancelled_job_stops_reading(project, context, settings):
    project.fail("GET", GET, "hang", times=100)
    threading.Timer(0.2, context.cancel).start()
    begun = time.monotonic()
    with pytest.raises(JobCancelled):
        fetch(OWN, context, settings(timeout=30))
    assert time.monotonic() - begun < 1.5
