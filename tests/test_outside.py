"""The world outside of the workers that ships for tests: what it remembers when it fails."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections import Counter

import pytest

from wan_host.context import StageContext
from wan_host.errors import PublishFailed, PublishRefused
from wan_host.media import OutputFile
from wan_host.testing.outside import Faults, Outside
from wan_host.testing.remote_store import URL_VARIABLE, publish


class Always(Faults):
    """The same fault for every request."""

    def __init__(self, fault):
        super().__init__(seed=0, rate=0, hang_seconds=0.2)
        self.fault = fault

    def next(self, what):
        return self.fault


@pytest.fixture
def outside(request):
    with Outside(Always(getattr(request, "param", "none"))) as server:
        yield server


def ask(outside, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(outside.address, timeout=5)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers)
        with connection.getresponse() as answer:
            return answer.status, answer.read()


def send(outside, tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(b"picture")
    file = OutputFile(
        job_id="a",
        user_id="u",
        asset_index=0,
        role="asset",
        path=path,
        key="u/a/0.png",
        content_type="image/png",
        file_size_bytes=7,
    )
    return publish(file, StageContext(job_id="a", user_id="u", workdir=tmp_path, deadline=time.monotonic() + 5))


def test_references_are_served_and_others_are_not_there(outside):
    outside.references["1.png"] = b"picture"
    assert ask(outside, "GET", "/references/1.png") == (200, b"picture")
    assert ask(outside, "GET", "/references/2.png")[0] == 404


def test_a_published_file_is_kept_under_its_key(outside, tmp_path, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, f"{outside.url}/store")
    assert send(outside, tmp_path).url == "store/u/a/0.png"
    assert outside.objects == {"u/a/0.png": b"picture"}


@pytest.mark.parametrize("outside", ["reset", "error", "hang"], indirect=True)
def test_a_fault_before_the_effect_leaves_nothing(outside, tmp_path, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, f"{outside.url}/store")
    with pytest.raises(PublishFailed, match="u/a/0"):
        send(outside, tmp_path)
    assert outside.objects == {}


@pytest.mark.parametrize("outside", ["reset_after", "error_after"], indirect=True)
def test_a_fault_after_the_effect_looks_the_same_to_the_caller(outside, tmp_path, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, f"{outside.url}/store")
    with pytest.raises(PublishFailed, match="u/a/0"):
        send(outside, tmp_path)
    assert outside.objects == {"u/a/0.png": b"picture"}


def test_a_store_that_refuses_is_not_asked_again(outside, tmp_path, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, f"{outside.url}/elsewhere")
    with pytest.raises(PublishRefused, match="404"):
        send(outside, tmp_path)


@pytest.mark.parametrize(("outside", "accepted"), [("none", True), ("error", False), ("error_after", True)], indirect=["outside"])
def test_every_report_that_arrives_is_noted(outside, accepted):
    headers = {"Idempotency-Key": "a:1:completed"}
    ask(outside, "POST", "/reports", json.dumps({"job_id": "a"}).encode(), **headers)
    (arrival,) = outside.arrivals
    assert (arrival.key, arrival.accepted, arrival.report) == ("a:1:completed", accepted, {"job_id": "a"})


def test_a_seed_draws_the_same_faults_whatever_the_order():
    names = [f"job-{number}" for number in range(200)]
    first, again = Faults(seed=4, rate=0.5), Faults(seed=4, rate=0.5)
    drawn = {name: (first.next(name), first.next(name)) for name in names}
    assert drawn == {name: (again.next(name), again.next(name)) for name in reversed(names)}
    assert Counter(first.made) == Counter(again.made)
    assert set(first.made) == {"reset", "error", "reset_after", "error_after", "slow", "hang"}
    assert 120 < first.made.total() < 280
