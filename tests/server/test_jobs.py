"""Jobs by HTTP: submitted, listed, read, cancelled, retried, and what is refused."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import job


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    return body


def test_a_job_is_submitted_done_and_read(api):
    (submitted,) = api.client.post("/jobs", json=job("one")).json()["jobs"]
    assert submitted == {"id": "one", "known": None, "url": "/jobs/one", "events": "/jobs/one/events"}
    done = api.wait_for("one", "completed")
    assert (done["type"], done["user_id"], done["model"], done["attempts"]) == ("video_fast", "user-1", "instant", 1)
    (asset,) = done["assets"]
    assert (asset["name"], asset["url"]) == ("0.mp4", "workspace-temp/user-1/one/0.mp4")
    assert asset["metadata"]["seed"] == done["seed"]
    assert done["metadata"]["processing_time"] > 0
    assert api.site.receiver.wait_for("one", "completed")["assets"][0]["url"] == asset["url"]


def test_a_list_is_taken_whole(api):
    assert [item["id"] for item in api.submit(job("list-1"), job("list-2"), job("list-3"))] == ["list-1", "list-2", "list-3"]
    for name in ("list-1", "list-2", "list-3"):
        api.wait_for(name, "completed")
    listed = [item["id"] for item in api.client.get("/jobs?limit=3").json()["jobs"]]
    assert sorted(listed) == ["list-1", "list-2", "list-3"]
    assert len(api.client.get("/jobs?status=failed").json()["jobs"]) == 0


def test_a_list_with_a_wrong_entry_is_refused_whole_and_names_every_wrong_entry(api):
    wrong = [job("fine"), job("narrow", width=127), {**job("typed"), "type": "poem"}, {"id": "x"}]
    body = problem(api.client.post("/jobs", json=wrong), 422)
    assert [item["entry"] for item in body["errors"]] == [2, 3, 4]
    assert body["error_type"] == "invalid_job"
    assert "config.width: 127" in body["errors"][0]["detail"]
    assert "'poem'" in body["errors"][1]["detail"]
    problem(api.client.get("/jobs/fine"), 404)


def test_the_error_type_is_that_of_the_first_wrong_entry(api):
    body = problem(api.client.post("/jobs", json=[job("first", model="nothing"), {"id": "x"}]), 422)
    assert [item["entry"] for item in body["errors"]] == [1, 2]
    assert (body["detail"], body["error_type"]) == (body["errors"][0]["detail"], "unknown_model")


def test_a_grid_stands_for_its_jobs(api):
    entry = job("grid")
    submitted = api.submit({**entry, "grid": {"config.seed": [1, 2, 3]}})
    assert len({item["id"] for item in submitted}) == 3
    assert {api.job(item["id"])["seed"] for item in submitted} == {1, 2, 3}


def test_an_id_that_is_known_is_said_to_be_and_not_run_twice(api):
    api.submit(job("twice"))
    api.wait_for("twice", "completed")
    (again,) = api.submit(job("twice"))
    assert again["known"] == "completed"
    time.sleep(0.5)
    assert api.job("twice")["attempts"] == 1


@pytest.mark.parametrize("model", ["nothing", ""])
def test_what_the_models_cannot_do_is_refused_at_once(api, model):
    body = problem(api.client.post("/jobs", json=job("no-model", model=model or "instanx")), 422)
    assert body["error_type"] == "unknown_model"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        *((body, 400) for body in (b"", b"{", b"nonsense", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}')),
        *((body, 422) for body in (b"[]", b"3", b"null", json.dumps([{}] * 1001).encode())),
    ],
)
def test_bodies_that_are_no_jobs_are_refused(api, content, status):
    problem(api.client.post("/jobs", content=content), status)


def test_a_job_larger_than_the_queue_takes_is_refused(api):
    big = job("big")
    big["config"]["image"] = "data:image/png;base64," + "A" * (1 << 20)
    assert "WAN_HOST_MAX_ENTRY_BYTES" in problem(api.client.post("/jobs", json=big), 422)["detail"]


@pytest.mark.parametrize(
    ("note", "seeds", "words"), [("", 1001, "at most 1000 jobs"), ("x" * 900_000, 100, "together at most 67108864 bytes")]
)
def test_a_small_body_that_stands_for_too_much_is_refused(api, note, seeds, words):
    entry = {**job("much"), "metadata": {"note": note}, "grid": {"config.seed": list(range(seeds))}}
    assert words in problem(api.client.post("/jobs", json=entry), 422)["detail"]


def test_a_large_batch_does_not_hold_up_others(api):
    entry = {**job("held", width=127), "metadata": {"note": "x" * 60_000}, "grid": {"config.seed": list(range(1000))}}
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        answer = pool.submit(api.client.post, "/jobs", json=entry)
        waits = []
        while not answer.done():
            asked = time.monotonic()
            assert api.client.get("/health").status_code == 200
            waits.append(time.monotonic() - asked)
        taken = time.monotonic() - started
    problem(answer.result(), 422)
    assert max(waits) < taken / 2


def test_a_running_job_is_cancelled_at_once(api):
    api.submit(job("cancel-me", "pace:0.1", num_inference_steps=200))
    api.wait_until_step("cancel-me")
    asked = time.monotonic()
    answer = api.client.delete("/jobs/cancel-me")
    assert (answer.status_code, answer.json()["outcome"]) == (202, "cancelling")
    assert api.wait_for("cancel-me", "cancelled")["error"]["error_type"] == "cancelled"
    assert time.monotonic() - asked < 1.5, "not by the next renewal: at once"
    problem(api.client.delete("/jobs/cancel-me"), 409)


def test_a_waiting_job_is_cancelled_and_can_be_retried(serve):
    api = serve(WAN_HOST_PREFETCH_SECONDS="0")
    api.submit(job("in-front", "pace:0.1", num_inference_steps=60), job("behind"))
    api.wait_until_step("in-front")
    assert api.client.delete("/jobs/behind").json() == {"id": "behind", "outcome": "cancelled"}
    answer = api.client.post("/jobs/behind/retry")
    assert (answer.status_code, answer.json()) == (202, {"id": "behind", "status": "waiting"})
    api.client.delete("/jobs/in-front")
    api.wait_for("behind", "completed")
    assert "is completed" in problem(api.client.post("/jobs/behind/retry"), 409)["detail"]


def test_a_failed_job_says_why(api):
    api.submit(job("refused", "refuse"))
    failed = api.wait_for("refused", "failed")
    assert failed["error"]["error_type"] == "unsupported"
    assert "refusal" in failed["error"]["message"]
    assert [item["id"] for item in api.client.get("/jobs?status=failed").json()["jobs"]] == ["refused"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_unknown_jobs_are_404(api, method):
    problem(api.client.request(method, "/jobs/unknown"), 404)
    problem(api.client.post("/jobs/unknown/retry"), 404)
    problem(api.client.get("/jobs/unknown/events"), 404)
    problem(api.client.get("/jobs/unknown/assets/0.mp4"), 404)


def test_data_uris_are_shortened_where_a_job_is_read(api):
    uri = "data:image/png;base64," + "A" * 1000
    api.submit({**job("inline"), "metadata": {"note": uri}})
    shown = api.job("inline")["payload"]["metadata"]["note"]
    assert len(shown) < 100
    assert "1022 characters" in shown


def test_a_payload_that_other_producers_wrote_does_not_break_the_list(api):
    for number, entry in enumerate(
        ['{"id": "odd-%d", "prompt": 3, "type": [1], "config": 7, "user_id": null}', '{"id": "odd-%d"}']
    ):
        api.site.push(entry % number)
    api.wait_for("odd-0", "failed")
    api.wait_for("odd-1", "failed")
    assert {"odd-0", "odd-1"} <= {item["id"] for item in api.client.get("/jobs").json()["jobs"]}


@pytest.mark.parametrize("levels", [100, 300, 600])
def test_a_payload_is_shown_however_deep_it_is_nested(api, levels):
    name = f"deep-{levels}"
    text = json.dumps({**job(name), "metadata": {"note": 0}})
    api.site.push(text.replace('"note": 0', f'"note": {"[" * levels}{"]" * levels}'))
    payload = api.wait_for(name, "completed", "failed")["payload"]
    assert payload["prompt"] == "a red circle"
    assert "..." in json.dumps(payload["metadata"])


def test_what_is_pushed_while_every_lane_is_busy_is_listed(api):
    api.submit(job("occupies", "pace:0.5", num_inference_steps=100))
    api.wait_until_step("occupies")
    for name in ("pushed-1", "pushed-2"):
        api.site.push(json.dumps(job(name)))
    listed = {item["id"]: item["status"] for item in api.client.get("/jobs").json()["jobs"]}
    assert listed["pushed-2"] == "waiting"
    for name in ("pushed-2", "pushed-1", "occupies"):
        api.client.delete(f"/jobs/{name}")
    api.wait_for("occupies", "cancelled")


def test_the_fleet_is_listed(api):
    (worker,) = api.client.get("/workers").json()["workers"]
    assert worker["alive"]
    assert worker["about"]["devices"].startswith("cpu")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/jobs", 405),
        ("GET", "/jobs?limit=many", 422),
        ("GET", "/jobs?status=odd", 422),
        ("GET", "/jobs/a%20b", 422),
        ("POST", "/jobs/a/b", 404),
    ],
)
def test_every_error_is_a_problem(api, method, path, status):
    assert problem(api.client.request(method, path), status)["detail"]
