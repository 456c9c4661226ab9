"""Registration: the receiver knows the worker while it lives, and hears when it goes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime

import pytest
import structlog
from wan_host_supabase import registration
from wan_host_supabase.registration import start, stop

from plugins.supabase.tests.stand_in import FORGED_KEY
from wan_host import WorkerInfo
from wan_host.testing.server import Answer, scripted_server

FUNCTION = "/functions/v1/update-worker-url"


@pytest.fixture
def health():
    """Serve the worker's ``/health``; the list holds the paths that were asked for."""
    with scripted_server(lambda asked: Answer(200 if asked.path == "/health" else 404)) as server:
        yield server


@pytest.fixture
def worker(health):
    return WorkerInfo(worker_id="w1", version="0.1.0", host="0.0.0.0", port=7860, url=health.url, devices=("cpu",))


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture(autouse=True)
def stopped(project, worker, monkeypatch):
    monkeypatch.setattr(registration, "_FIRST_PAUSE", 0.05)
    yield
    stop(worker)


def until(condition):
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.01)


def test_a_worker_tells_its_address_with_the_fields_that_the_receiver_knows(project, settings, worker, health):
    start(worker, settings())
    until(lambda: project.registrations)
    (fields,) = project.registrations
    assert datetime.fromisoformat(fields.pop("timestamp")).tzinfo is not None
    assert fields == {
        "worker_url": worker.url,
        "auto_registered": True,
        "registration_method": "wan_worker_self_registration",
        "detection_method": "WAN_HOST_PUBLIC_URL",
    }
    until(lambda: health.asked)
    assert health.asked[0].path == "/health"


def test_an_address_of_runpods_is_named_as_such(project, settings, worker):
    start(replace(worker, url="https://pod1-7860.proxy.runpod.net"), settings(runpod_pod_id="pod1"))
    until(lambda: project.registrations)
    assert project.registrations[0]["detection_method"] == "RUNPOD_POD_ID"


def test_a_slash_at_the_end_of_the_address_is_dropped(project, settings, worker, health):
    start(replace(worker, url=worker.url + "/"), settings())
    until(lambda: health.asked)
    assert health.asked[0].path == "/health"
    assert project.registrations[0]["worker_url"] == health.url


def test_the_address_is_told_again_and_again(project, settings, worker):
    start(worker, settings().model_copy(update={"register_seconds": 0.05}))
    until(lambda: len(project.registrations) >= 4)


def test_faults_are_borne_and_logged_once(project, settings, worker, logged):
    project.fail("POST", FUNCTION, "status", 503, times=3)
    project.fail("POST", FUNCTION, "reset", times=1)
    start(worker, settings())
    until(lambda: project.registrations)
    until(lambda: logged and logged[-1]["event"] == "worker registered")
    assert [entry["event"] for entry in logged].count("worker is not registered; it goes on trying") == 2  # two reasons


def test_a_worker_that_cannot_be_reached_learns_why(project, settings, worker, logged):
    start(replace(worker, url="http://127.0.0.1:9"), settings())
    until(lambda: logged)
    assert "Worker URL is not responding: <urlopen error" in logged[0]["reason"]
    until(lambda: len(project.registrations) >= 2)


def test_at_stop_the_address_is_taken_back(project, settings, worker):
    start(worker, settings())
    until(lambda: project.registrations)
    stop(worker)
    last = project.registrations[-1]
    assert (last["worker_url"], last["auto_registered"], last["previous_worker_url"]) == ("", False, worker.url)
    assert not any(thread.name == "wan-host-supabase-registration" for thread in threading.enumerate())


def test_the_stop_does_not_wait_for_a_receiver_that_hangs(project, settings, worker, logged, monkeypatch):
    monkeypatch.setattr(registration, "STOP_SECONDS", 0.3)
    project.fail("POST", FUNCTION, "hang", times=100)
    start(worker, settings())
    until(lambda: project.asked)
    begun = time.monotonic()
    stop(worker)
    assert time.monotonic() - begun < 1
    assert "may still be registered" in logged[-1]["event"]


def test_a_worker_starts_only_once_and_stops_although_it_never_started(project, settings, worker):
    stop(worker)
    start(worker, settings())
    start(worker, settings())
    until(lambda: project.registrations)
    time.sleep(0.1)
    assert len(project.registrations) == 1


def test_without_a_public_address_it_says_so_once_and_does_nothing(project, settings, worker, logged):
    start(replace(worker, url=""), settings())
    (entry,) = logged
    assert "no public address is known; set WAN_HOST_PUBLIC_URL" in entry["event"]
    assert not project.asked


@pytest.mark.parametrize("values", [{"supabase_url": None}, {"registers": False}])
def test_a_worker_that_is_not_to_register_is_silent(project, settings, worker, logged, values):
    start(worker, settings(**values))
    assert not logged
    assert not project.asked


def test_a_missing_key_is_said(settings, worker, logged):
    start(worker, settings(supabase_service_role_key=None))
    assert logged[0]["missing"] == "SUPABASE_SERVICE_ROLE_KEY"


def test_no_secret_is_in_the_log(project, settings, worker, logged):
    project.fail("POST", FUNCTION, "quote")
    start(worker, settings(supabase_service_role_key=FORGED_KEY))
    until(lambda: len(logged) >= 2)
    assert FORGED_KEY not in str(logged)
