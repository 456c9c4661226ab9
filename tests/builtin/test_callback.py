"""Reports by HTTP: what is sent, and what every answer means."""

import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pluggy
import pytest

from wan_host import hookspecs
from wan_host.builtin.callback import HttpCallback
from wan_host.context import StageContext
from wan_host.errors import JobCancelled, SettingsError
from wan_host.report import Report
from wan_host.testing.server import Answer, scripted_server

SECRET, BEARER = "s3cr3t-s3cr3t-s3cr3t", "b34r3r-b34r3r-b34r3r"
REPORT = Report(
    job_id="j1", attempt=2, status="completed", sequence=7, payload={"job_id": "j1", "prompt": "ein Bär\n", "assets": []}
)


def context(seconds=20.0):
    return StageContext(job_id="j1", user_id="u1", workdir=Path(), deadline=time.monotonic() + seconds)


@pytest.fixture
def server():
    with scripted_server(lambda asked: Answer(body=b'{"success":true}')) as script:
        yield script


@pytest.fixture
def callback(server):
    sink = HttpCallback(f"{server.url}/hook?key=k3y", SECRET, BEARER, 5.0)
    yield sink
    sink.close()


def deliver(callback, seconds=20.0):
    return callback.deliver_report(REPORT, context(seconds))


def test_a_report_is_posted_as_signed_json(server, callback):
    delivery = deliver(callback)
    assert (delivery.outcome, delivery.note) == ("accepted", "200 OK")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/hook?key=k3y")
    assert json.loads(asked.body) == REPORT.payload
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["idempotency-key"] == "j1:2:completed"
    assert asked.headers["authorization"] == f"Bearer {BEARER}"
    expected = hmac.new(SECRET.encode(), asked.body, hashlib.sha256).hexdigest()
    assert asked.headers["x-callback-signature"] == f"sha256={expected}"


def test_without_secret_and_bearer_neither_header_is_sent(server):
    sink = HttpCallback(server.url, None, None, 5.0)
    deliver(sink)
    sink.close()
    assert not {"authorization", "x-callback-signature"} & set(server.asked[0].headers)


def test_it_is_called_through_the_report_hook(server, callback):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(callback)
    manager.check_pending()
    assert [delivery.outcome for delivery in manager.hook.deliver_report(report=REPORT, context=context())] == ["accepted"]


def test_the_connection_is_kept(server, callback):
    for _ in range(3):
        deliver(callback)
    assert {asked.connection for asked in server.asked} == {0}


def test_a_connection_that_the_server_dropped_is_opened_anew(server, callback):
    deliver(callback)
    server.answer = lambda asked: Answer(headers={"Connection": "close"})
    assert [deliver(callback).outcome for _ in range(3)] == ["accepted"] * 3


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_2xx_is_accepted(server, callback, status):
    server.answer = lambda asked: Answer(status)
    assert deliver(callback).outcome == "accepted"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
def test_some_answers_are_worth_a_retry(server, callback, status):
    server.answer = lambda asked: Answer(status)
    delivery = deliver(callback)
    assert delivery.outcome == "retry"
    assert str(status) in delivery.note


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_other_4xx_are_final(server, callback, status):
    server.answer = lambda asked: Answer(status)
    delivery = deliver(callback)
    assert delivery.outcome == "refused"
    assert str(status) in delivery.note


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(server, callback, status):
    server.answer = lambda asked: Answer(status, headers={"Location": f"{server.url}/elsewhere"})
    delivery = deliver(callback)
    assert delivery.outcome == "refused"
    assert "redirect" in delivery.note
    assert len(server.asked) == 1


def test_retry_after_is_understood_as_seconds_and_as_a_date(server, callback):
    server.answer = lambda asked: Answer(503, headers={"Retry-After": "120"})
    assert deliver(callback).retry_after == 120
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.answer = lambda asked: Answer(429, headers={"Retry-After": soon})
    assert deliver(callback).retry_after == pytest.approx(60, abs=3)


@pytest.mark.parametrize(
    ("value", "seconds"), [("-5", 0), ("soon", None), ("nan", None), ("inf", None), ("1e9", 86400), ("", None)]
)
def test_a_strange_retry_after_does_no_harm(server, callback, value, seconds):
    server.answer = lambda asked: Answer(503, headers={"Retry-After": value})
    assert deliver(callback).retry_after == seconds


def test_a_report_that_the_receiver_skipped_is_noted(server, callback):
    server.answer = lambda asked: Answer(body=b'{"success":true,"skipped":true}')
    delivery = deliver(callback)
    assert (delivery.outcome, delivery.note) == ("accepted", "200 OK, but the receiver skipped it")


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b'{"skipped":"no"}', b"[" * 60_000, b"\xff\xfe", bytes(1 << 20)])
def test_any_body_of_a_2xx_is_accepted(server, callback, body):
    server.answer = lambda asked: Answer(body=body)
    assert deliver(callback).outcome == "accepted"


def test_a_receiver_that_is_not_there_is_worth_a_retry():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    sink = HttpCallback(url, SECRET, BEARER, 5.0)
    delivery = deliver(sink)
    sink.close()
    assert (delivery.outcome, "connection" in delivery.note) == ("retry", True)


def test_a_receiver_that_is_silent_is_worth_a_retry_after_the_timeout(server):
    server.answer = lambda asked: time.sleep(1) or Answer()
    sink = HttpCallback(server.url, SECRET, BEARER, 0.2)
    delivery = deliver(sink)
    sink.close()
    assert (delivery.outcome, "0.2 s" in delivery.note) == ("retry", True)


def test_the_deadline_of_the_stage_bounds_the_wait(server, callback):
    server.answer = lambda asked: time.sleep(1) or Answer()
    start = time.monotonic()
    assert deliver(callback, seconds=0.2).outcome == "retry"
    assert time.monotonic() - start < 0.9


def test_a_receiver_that_breaks_off_is_worth_a_retry(server, callback):
    server.answer = lambda asked: (_ for _ in ()).throw(OSError)
    assert deliver(callback).outcome == "retry"


def test_an_answer_that_breaks_off_after_its_status_is_accepted(server, callback):
    server.answer = lambda asked: Answer(headers={"Content-Length": "100", "Connection": "close"}, body=b"half")
    assert deliver(callback).outcome == "accepted"


def test_nothing_is_sent_for_a_cancelled_delivery(server, callback):
    given = context()
    given.cancel()
    with pytest.raises(JobCancelled):
        callback.deliver_report(REPORT, given)
    assert server.asked == []


def test_many_threads_share_one_callback(server, callback):
    threads = [threading.Thread(target=deliver, args=(callback,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 8


def test_secrets_never_appear(server, callback, caplog):
    caplog.set_level(logging.DEBUG)
    server.answer = lambda asked: Answer(401, body=json.dumps(dict(asked.headers)).encode())
    shown = [repr(callback), str(callback), repr(deliver(callback))]
    sink = HttpCallback(f"http://user:{SECRET}@127.0.0.1:9/?key=k3y", SECRET, BEARER, 5.0)
    shown += [repr(sink), repr(deliver(sink))]
    sink.close()
    text = "\n".join([*shown, caplog.text])
    for secret in (SECRET, BEARER, "k3y"):
        assert secret not in text


@pytest.mark.parametrize("bearer", ["line\nbreak", "k\u00e9y"])
def test_a_bearer_that_no_header_can_carry_is_refused_unseen(bearer):
    with pytest.raises(SettingsError) as caught:
        HttpCallback("http://127.0.0.1/", None, bearer, 5.0)
    assert bearer not in str(caught.value)
