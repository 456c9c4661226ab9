"""Watching jobs: progress, previews and ends as server-sent events, here and on other workers."""

import base64
import io
import signal
import socket
import threading
import time

import pytest
from PIL import Image
from redis import Redis

from tests.server.conftest import job, served
from wan_host.queue import EmbeddedServer


@pytest.fixture(scope="module")
def api(tmp_path_factory, plugins):
    """A worker that all tests of the file share; what it does not work on waits in the queue."""
    with served(tmp_path_factory.mktemp("api"), plugins, WAN_HOST_PREFETCH_SECONDS="0") as there:
        yield there


def test_the_events_of_a_job_tell_its_steps_and_its_end(api):
    api.submit(job("watched", "pace:0.15", num_inference_steps=10))
    found = list(api.events("watched"))
    progress = [data for name, data in found if name == "progress"]
    steps = [data["step"] for data in progress if data["stage"] == "denoise"]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 5
    assert {data["total"] for data in progress if data["step"]} == {10}
    name, end = found[-1]
    assert name == "end"
    assert end["status"] in {"published", "completed"}
    assert end["assets"][0]["name"] == "0.mp4"
    assert [name for name, _ in found].count("end") == 1


def test_the_time_left_shrinks_as_the_steps_are_done(api):
    api.submit(job("timed", "pace:0.2", num_inference_steps=15))
    left = [data["seconds_left"] for name, data in api.events("timed") if name == "progress" and data["stage"] == "denoise"]
    left = [seconds for seconds in left if seconds is not None]
    assert left
    assert 0.5 < left[0] < 6
    assert left[-1] < left[0]


def test_a_job_that_has_ended_is_told_at_once(api):
    api.submit(job("over"))
    api.wait_for("over", "completed")
    names = [name for name, _ in api.events("over")]
    assert names == ["progress", "end"]


def test_a_failed_job_ends_with_its_error(api):
    api.submit(job("fails", "pace:0.2 refuse"))
    name, end = list(api.events("fails"))[-1]
    assert (name, end["status"], end["error"]["error_type"]) == ("end", "failed", "unsupported")


def test_previews_come_while_the_job_runs(api):
    api.submit(job("seen", "pace:0.3 preview", num_inference_steps=8))
    found = list(api.events("seen"))
    previews = [data for name, data in found if name == "preview"]
    assert len(previews) >= 2
    header, data = previews[-1]["image"].split(",")
    assert header == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (previews[-1]["width"], previews[-1]["height"])
    assert [data["step"] for data in previews] == sorted({data["step"] for data in previews})


def test_events_of_a_job_that_runs_on_another_worker_come_from_the_queue(serve):
    here = serve()
    here.submit(job("busy-here", "pace:0.3", num_inference_steps=100))
    here.wait_until_step("busy-here")
    there = here.site.start(WAN_WORKER_API_KEY=here.key, WAN_HOST_HOST="127.0.0.1", WAN_HOST_PREFETCH_SECONDS="0")
    here.submit(job("elsewhere", "pace:0.2", num_inference_steps=20))
    found = list(here.events("elsewhere"))
    steps = [data["step"] for name, data in found if name == "progress"]
    assert len(set(steps)) >= 3
    assert found[-1][0] == "end"
    assert here.job("elsewhere")["worker"].endswith(str(there.pid))
    here.client.delete("/jobs/busy-here")


def test_a_reader_that_does_not_read_keeps_no_old_end_for_those_who_watch_a_retry(api):
    api.submit(job("again", "pace:0.1", num_inference_steps=100))
    api.wait_until_step("again")
    request = f"GET /jobs/again/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api.key}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.worker.port())) as sleeper:
        sleeper.sendall(request.encode())
        api.client.delete("/jobs/again")
        api.wait_for("again", "cancelled")
        assert list(api.events("again"))[-1][1]["status"] == "cancelled"
        api.client.post("/jobs/again/retry")
        api.wait_until_step("again")
        events = api.events("again")
        assert next(events)[1]["status"] == "running"
        api.client.delete("/jobs/again")
        assert list(events)[-1][1]["status"] == "cancelled"


def test_a_stream_ends_when_the_queue_has_forgotten_the_job(api):
    api.submit(job("occupies", "pace:0.3", num_inference_steps=200))
    api.wait_until_step("occupies")
    api.submit(job("forgotten"))
    events = api.events("forgotten")
    assert next(events)[1]["status"] == "waiting"
    with Redis.from_url(EmbeddedServer(api.site.data).url) as client:
        assert client.delete(*client.keys("*forgotten*"))
    assert api.client.get("/jobs/forgotten").status_code == 404
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(events), daemon=True)
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
    assert "end" not in [name for name, _ in rest]
    api.client.delete("/jobs/occupies")


def test_a_worker_stops_although_streams_are_open(serve):
    api = serve(WAN_HOST_STOP_GRACE="0.5")
    api.submit(job("open", "pace:0.1", num_inference_steps=200))
    api.wait_until_step("open")
    request = f"GET /jobs/open/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api.key}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.worker.port())) as reader:
        reader.sendall(request.encode())
        assert b"200 OK" in reader.recv(1000)
        api.worker.signal(signal.SIGTERM)
        assert api.worker.wait(20) == 0
    faults = [line for line in api.worker.events() if line["level"] in {"error", "critical"}]
    assert faults == []


def test_readers_that_never_read_cost_a_job_nothing(api):
    length = {"num_inference_steps": 20}
    api.submit(job("alone", "pace:0.05 preview", **length))
    alone = api.wait_for("alone", "completed")
    api.submit(job("crowded", "pace:0.05 preview", **length))
    request = f"GET /jobs/crowded/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {api.key}\r\n\r\n".encode()
    readers = []
    for _ in range(100):
        reader = socket.create_connection(("127.0.0.1", api.worker.port()))
        reader.sendall(request)
        readers.append(reader)
    asked = time.monotonic()
    assert api.client.get("/health").status_code == 200
    assert time.monotonic() - asked < 2
    crowded = api.wait_for("crowded", "completed")
    seconds = [found["metadata"]["stage_seconds"]["denoise"] for found in (alone, crowded)]
    assert seconds[1] < seconds[0] * 1.5 + 0.3
    for reader in readers:
        reader.close()


def test_a_waiting_job_has_a_position_and_an_estimate(serve):
    api = serve(WAN_HOST_PREFETCH_SECONDS="0")
    api.submit(job("before", "pace:0.1", num_inference_steps=20))
    assert 1.5 < sum(api.wait_for("before", "completed")["metadata"]["stage_seconds"].values()) < 6
    api.submit(job("now", "pace:0.1", num_inference_steps=20))
    api.wait_until_step("now")
    api.submit(job("next", "pace:0.1", num_inference_steps=20), job("last"))
    last = api.job("last")
    assert (last["status"], last["queue_position"]) == ("waiting", 2)
    assert 2 < last["seconds_until_start"] < 10
    found = list(api.events("next"))
    waiting = [data for name, data in found if name == "progress" and data["status"] == "waiting"]
    assert waiting[0]["queue_position"] == 1
    assert 0 < waiting[0]["seconds_until_start"] < 6
    first = next(data for name, data in found if name == "progress" and data["status"] == "running")
    assert 1 < first["seconds_left"] < 5, "from the history: its own pace is not known yet"
