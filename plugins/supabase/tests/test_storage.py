"""Publishing: what arrives, and what becomes of every fault on the way."""

from __future__ import annotations

import threading
import time

import pytest
from wan_host_supabase import patience
from wan_host_supabase.storage import AT_ONCE_BYTES, Store

from plugins.supabase.tests import stand_in
from plugins.supabase.tests.stand_in import (
    ANONYMOUS_KEY,
    CUT_OFF_KEY,
    EXPIRED_KEY,
    FORGED_KEY,
    SERVICE_KEY,
    Bucket,
    Stored,
)
from wan_host import DeadlineExceeded, JobCancelled, PublishFailed, PublishRefused
from wan_host.context import StageContext

PATH = "workspace-temp/u1/job1/0.mp4"
OBJECT = "/storage/v1/object/workspace-temp"
INFO = "/storage/v1/object/info"
TUS = "/storage/v1/upload/resumable"
LARGE = 2 * AT_ONCE_BYTES + 12_345


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(patience.backoff, "__defaults__", (0.02, 0.1))


@pytest.fixture
def publish(settings, context):
    """Publish a file by one and the same store; settings given make another store."""
    usual = Store(settings())
    return lambda file, **values: (Store(settings(**values)) if values else usual).publish(file, context)


def test_a_small_file_goes_in_one_request_and_its_size_is_confirmed(project, publish, file):
    published = publish(file(1000))
    assert (published.url, published.file_size_bytes) == (PATH, 1000)
    assert project.data(PATH) == file(1000).path.read_bytes()
    assert [(asked.method, asked.path.split("/")[4]) for asked in project.asked] == [("POST", "workspace-temp"), ("GET", "info")]


def test_content_type_and_cache_time_reach_the_store(project, file, publish):
    publish(file(10, "u1/job1/0.thumb.webp", "image/webp"), cache_seconds=60)
    stored = project.objects["workspace-temp", "u1/job1/0.thumb.webp"]
    assert (stored.content_type, stored.cache_control) == ("image/webp", "max-age=60")


@pytest.mark.parametrize("size", [500, LARGE])
def test_publishing_again_replaces_the_file(project, publish, file, size):
    publish(file(size))
    newer = file(size, fill=b"newer")
    publish(newer)
    assert project.data(PATH) == newer.path.read_bytes()


def test_a_large_file_goes_in_pieces_of_six_megabytes(project, publish, file):
    large = file(LARGE)
    assert publish(large).file_size_bytes == LARGE
    assert project.data(PATH) == large.path.read_bytes()
    assert project.count("POST", OBJECT) == 0
    lengths = [int(asked.headers["content-length"]) for asked in project.asked if asked.method == "PATCH"]
    assert lengths == [AT_ONCE_BYTES, AT_ONCE_BYTES, 12_345]
    stored = project.objects["workspace-temp", "u1/job1/0.mp4"]
    assert (stored.content_type, stored.cache_control) == ("video/mp4", "max-age=3600")


def test_every_request_to_the_store_has_a_connection_of_its_own(project, publish, file):
    publish(file(LARGE))
    assert {asked.headers["connection"] for asked in project.asked} == {"close"}


def test_the_key_goes_to_the_project_only_wherever_the_store_says_the_upload_is(project, publish, file):
    publish(file(LARGE))  # the stand-in names http://storage.internal:5000
    assert project.count("PATCH", TUS) == 3


@pytest.mark.parametrize("how", ["status", "status_after", "reset", "reset_after", "page"])
def test_a_small_file_arrives_although_the_first_request_fails(project, publish, file, how):
    project.fail("POST", OBJECT, how, 503)
    small = file(200_000)
    assert publish(small).file_size_bytes == 200_000
    assert project.data(PATH) == small.path.read_bytes()


def test_an_upload_whose_answer_was_lost_is_asked_for_and_not_sent_again(project, publish, file):
    project.fail("POST", OBJECT, "reset_after")
    publish(file(1000))
    assert (project.count("POST", OBJECT), project.count("POST", TUS)) == (1, 0)


def test_an_upload_that_timed_out_is_asked_for_and_not_sent_again(project, file, publish):
    project.fail("POST", OBJECT, "hang_after")
    publish(file(1000), timeout=0.3)
    assert (project.count("POST", OBJECT), project.count("POST", TUS)) == (1, 0)


def test_another_file_of_the_same_size_is_not_taken_for_the_one_that_was_sent(project, publish, file):
    project.objects["workspace-temp", "u1/job1/0.mp4"] = Stored(b"x" * 1000, "video/mp4", "max-age=3600")
    project.fail("POST", OBJECT, "reset", 100)
    small = file(1000)
    publish(small)
    assert project.data(PATH) == small.path.read_bytes()


def test_a_file_that_arrived_short_is_sent_again(project, file, publish):
    project.fail("GET", INFO, "short", 400)
    assert publish(file(1000)).file_size_bytes == 1000
    assert project.count("POST", OBJECT) == 2


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_store_that_never_has_the_size_that_was_sent_is_not_believed(project, file, publish, size):
    project.fail("GET", INFO, "short", 400, times=100)
    with pytest.raises(PublishFailed, match=f"has 400 bytes after {size} bytes were sent"):
        publish(file(size))


@pytest.mark.parametrize(
    "fault",
    [
        {"how": "reset", "value": 2_000_000},
        {"how": "reset", "value": 2_000_000, "skip": 1},
        {"how": "reset_after"},
        {"how": "status", "value": 502, "skip": 1},
        {"how": "status_after", "value": 502},
        {"how": "partial", "value": 1_000_000},
        {"how": "partial", "value": 0, "skip": 1},
        {"how": "expire", "skip": 1},
        {"how": "expire", "skip": 2},
        {"how": "status", "value": 409, "skip": 2},
        {"how": "hang", "skip": 1},
        {"how": "hang_after", "skip": 2},
        {"how": "status", "value": 429},
    ],
    ids=str,
)
def test_a_large_file_arrives_although_a_piece_fails(project, file, publish, fault):
    project.fail("PATCH", TUS, **fault)
    large = file(LARGE)
    assert publish(large).file_size_bytes == LARGE
    assert project.data(PATH) == large.path.read_bytes()


def test_after_a_cut_the_upload_goes_on_from_the_byte_that_the_store_names(project, publish, file):
    project.fail("PATCH", TUS, "reset", 2_000_000, skip=1)
    publish(file(LARGE))
    offsets = [int(asked.headers["upload-offset"]) for asked in project.asked if asked.method == "PATCH"]
    assert offsets == [0, AT_ONCE_BYTES, AT_ONCE_BYTES + 2_000_000, 2 * AT_ONCE_BYTES + 2_000_000][: len(offsets)]
    assert (project.count("HEAD", TUS), project.count("POST", TUS)) == (1, 1)


def test_a_part_that_the_store_left_out_is_sent_from_the_offset_it_returned(project, publish, file):
    project.fail("PATCH", TUS, "partial", 1_000_000)
    publish(file(LARGE))
    offsets = [int(asked.headers["upload-offset"]) for asked in project.asked if asked.method == "PATCH"]
    assert offsets[:2] == [0, 1_000_000]
    assert project.count("HEAD", TUS) == 0


def test_an_upload_that_expired_starts_anew(project, publish, file):
    project.fail("PATCH", TUS, "expire", skip=1)
    publish(file(LARGE))
    assert project.count("POST", TUS) == 2


def test_uploads_that_always_expire_end_after_some_tries(project, publish, file):
    project.fail("PATCH", TUS, "expire", skip=1, times=1)
    project.fail("PATCH", TUS, "expire", skip=2, times=1)
    project.fail("PATCH", TUS, "expire", skip=3, times=1)
    with pytest.raises(PublishFailed, match="upload is gone"):
        publish(file(LARGE))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("md5", [True, False])
def test_a_lost_last_answer_costs_no_second_upload(project, publish, file, kept, md5):
    project.keeps_finished_uploads, project.etags_are_md5 = kept, md5
    project.fail("PATCH", TUS, "reset_after", skip=2)
    publish(file(LARGE))
    assert (project.count("POST", TUS), project.count("PATCH", TUS)) == (1, 3)


def test_an_upload_that_never_becomes_a_file_starts_anew(project, publish, file):
    project.objects["workspace-temp", "u1/job1/0.mp4"] = Stored(b"x" * LARGE, "video/mp4", "max-age=3600")
    project.fail("PATCH", TUS, "unfinished", skip=2)
    large = file(LARGE)
    publish(large)
    assert project.data(PATH) == large.path.read_bytes()
    assert project.count("POST", TUS) == 2


def test_the_hosts_next_try_goes_on_where_the_last_one_ended(project, publish, file):
    project.fail("PATCH", TUS, "status", 503, skip=1, times=3)
    large = file(LARGE)
    with pytest.raises(PublishFailed, match="503"):
        publish(large)
    publish(large)
    assert project.data(PATH) == large.path.read_bytes()
    assert project.count("POST", TUS) == 1


def test_a_file_that_changed_between_two_tries_is_sent_from_its_beginning(project, publish, file):
    project.fail("PATCH", TUS, "status", 503, skip=1, times=3)
    with pytest.raises(PublishFailed):
        publish(file(LARGE))
    newer = file(LARGE, fill=b"newer")
    publish(newer)
    assert project.data(PATH) == newer.path.read_bytes()


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_store_that_is_down_is_a_fault_that_may_pass(project, publish, file, size):
    for method in ("POST", "GET", "PATCH"):
        project.fail(method, "/storage", "status", 503, times=100)
    with pytest.raises(PublishFailed, match=r"workspace-temp/u1/job1/0.mp4 could not be published: the storage answered 503"):
        publish(file(size))


def test_a_store_that_cannot_be_reached_is_a_fault_that_may_pass(file, publish):
    with pytest.raises(PublishFailed, match="cannot be reached"):
        publish(file(10), supabase_url="http://127.0.0.1:9")


def test_an_address_that_the_store_does_not_give_is_a_fault_that_may_pass(project, file, publish, monkeypatch):
    monkeypatch.setattr(stand_in, "INTERNAL_ADDRESS", "")
    with pytest.raises(PublishFailed, match="201 without an address"):
        publish(file(LARGE))


def test_a_file_that_shrank_on_disk_is_not_sent(project, publish, file):
    small = file(1000)
    small.path.write_bytes(b"short")
    with pytest.raises(PublishFailed, match="5 bytes on disk, 1000 were expected"):
        publish(small)
    assert not project.asked


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (FORGED_KEY, "not signed for this project; set SUPABASE_SERVICE_ROLE_KEY"),
        (EXPIRED_KEY, "has expired"),
        (CUT_OFF_KEY, "no whole key"),
        (ANONYMOUS_KEY, "not the anonymous one"),
    ],
)
def test_a_wrong_key_is_refused_at_once_and_named(project, file, publish, key, words):
    for size in (1000, LARGE):
        with pytest.raises(PublishRefused, match=words) as caught:
            publish(file(size), supabase_service_role_key=key)
        assert key not in str(caught.value)
    assert len(project.asked) == 2


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_missing_bucket_is_refused_and_named(file, size, publish):
    with pytest.raises(PublishRefused, match="bucket 'results' does not exist; create it, or set WAN_HOST_BUCKET"):
        publish(file(size), bucket="results")


@pytest.mark.parametrize("size", [5000, LARGE])
def test_a_file_above_the_buckets_limit_is_refused_and_named(project, publish, file, size):
    project.buckets["workspace-temp"] = Bucket(limit=1000)
    with pytest.raises(PublishRefused, match=f"{size:,} bytes are more than the file size limit"):
        publish(file(size))


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_type_that_the_bucket_does_not_allow_is_refused_and_named(project, publish, file, size):
    project.buckets["workspace-temp"] = Bucket(types=("image/png",))
    with pytest.raises(PublishRefused, match="does not allow the type video/mp4; add it"):
        publish(file(size))


def test_a_project_over_its_quota_is_refused_and_named(project, publish, file):
    project.fail("POST", OBJECT, "status", 402)
    with pytest.raises(PublishRefused, match="over its quota"):
        publish(file(10))


def test_an_address_that_redirects_is_refused_and_gets_no_key(project, publish, file):
    project.fail("POST", OBJECT, "status", 308)
    with pytest.raises(PublishRefused, match="set the final address"):
        publish(file(10))
    assert len(project.asked) == 1


def test_a_refusal_that_cannot_be_heard_because_the_store_stopped_reading_is_heard_all_the_same(project, file, publish):
    project.buckets["workspace-temp"] = Bucket(limit=1000)
    with pytest.raises(PublishRefused, match="file size limit"):
        publish(file(AT_ONCE_BYTES), timeout=0.5)


@pytest.mark.parametrize("key", ["u1/../u2/0.mp4", "u1/jöb/0.mp4", "u1//0.mp4", "u1/%2e%2e/0.mp4", "u1/{0}.mp4"])
def test_a_key_that_the_store_would_refuse_is_not_sent(project, publish, file, key):
    bad = file(10)
    object.__setattr__(bad, "key", key)
    with pytest.raises(PublishRefused, match="key"):
        publish(bad)
    assert not project.asked


@pytest.mark.parametrize(
    ("missing", "named"),
    [("supabase_url", "needs SUPABASE_URL;"), ("supabase_service_role_key", "needs SUPABASE_SERVICE_ROLE_KEY;")],
)
def test_without_its_settings_publishing_says_what_to_set(file, missing, named, publish):
    with pytest.raises(PublishRefused, match=named):
        publish(file(10), **{missing: None})


@pytest.fixture(params=[5_000_000, LARGE])
def upload(request, file):
    return file(request.param)


@pytest.mark.parametrize("how", ["slow", "hang"])
def test_a_cancelled_upload_ends_within_a_moment(project, upload, context, publish, how):
    project.fail("POST", OBJECT, how, 300_000)
    project.fail("PATCH", TUS, how, 300_000)
    threading.Timer(0.3, context.cancel).start()
    begun = time.monotonic()
    with pytest.raises(JobCancelled):
        publish(upload, timeout=30)
    assert time.monotonic() - begun < 1.5
    assert not project.objects


def test_a_pause_between_two_tries_ends_when_the_job_is_cancelled(project, file, context, publish, monkeypatch):
    monkeypatch.setattr(patience.backoff, "__defaults__", (20.0, 30.0))
    project.fail("POST", OBJECT, "status", 503)
    threading.Timer(0.3, context.cancel).start()
    begun = time.monotonic()
    with pytest.raises(JobCancelled):
        publish(file(10))
    assert time.monotonic() - begun < 1.5


def test_an_upload_ends_at_the_jobs_deadline(project, file, tmp_path, settings):
    project.fail("POST", OBJECT, "hang")
    context = StageContext(job_id="job1", user_id="u1", workdir=tmp_path, deadline=time.monotonic() + 0.5)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        Store(settings(timeout=30)).publish(file(10), context)
    assert time.monotonic() - begun < 1.5


def test_no_secret_is_in_the_words_of_an_error(project, file, publish):
    project.fail("POST", OBJECT, "quote")
    with pytest.raises(PublishRefused) as caught:
        publish(file(10))
    assert SERVICE_KEY not in str(caught.value)
    assert "(hidden)" in str(caught.value)
