"""Models by HTTP: prompts enhanced while a video is made, loading and unloading, and what a worker shows of its settings."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import job, served
from tests.server.test_jobs import problem


def test_a_prompt_is_enhanced_with_the_seeds_fields(api):
    answer = api.client.post("/enhance", json={"prompt": "a cat", "config": {"job_type": "image_fast"}})
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("processing_time") >= 0
    assert body == {
        "success": True,
        "enhanced_prompt": "A CAT (image)",
        "original_prompt": "a cat",
        "enhancement_source": "qwen_base",
        "enhancement_applied": True,
        "enhancement_note": "",
        "model": "shouter",
    }


def test_the_old_names_of_job_types_are_taken(api):
    for name in ("wan_video_fast", "video7b_high_enhanced", "video_high"):
        body = api.client.post("/enhance", json={"prompt": "a cat", "config": {"job_type": name}}).json()
        assert body["enhanced_prompt"] == "A CAT (video)"


def test_an_original_that_stands_is_no_enhancement(api):
    body = api.client.post("/enhance", json={"prompt": "leave it"}).json()
    assert (body["enhanced_prompt"], body["enhancement_applied"], body["enhancement_source"]) == ("leave it", False, "none")
    assert body["enhancement_note"] == "it is good"


def test_a_prompt_is_enhanced_while_a_video_is_being_generated(api):
    api.submit(job("long", "pace:0.1", num_inference_steps=200))
    api.wait_until_step("long")
    asked = time.monotonic()
    assert api.client.post("/enhance", json={"prompt": "a cat"}).status_code == 200
    assert time.monotonic() - asked < 3
    assert api.job("long")["status"] == "running"
    api.client.delete("/jobs/long")


def test_a_failing_enhancement_is_a_problem(api):
    body = problem(api.client.post("/enhance", json={"prompt": "fault"}), 503)
    assert body["error_type"] == "generation_failed"


def test_wrong_requests_to_enhance_are_refused(api):
    problem(api.client.post("/enhance", json={"prompt": ""}), 422)
    problem(api.client.post("/enhance", json={"prompt": "x", "config": {"job_type": "poem"}}), 422)
    long = problem(api.client.post("/enhance", json={"prompt": "secretive " * 1000}), 422)
    assert "WAN_HOST_MAX_PROMPT_CHARACTERS" in long["detail"]
    assert "secretive" not in long["detail"]


@pytest.fixture(scope="module")
def limited(tmp_path_factory, plugins):
    with served(tmp_path_factory.mktemp("limited"), plugins, WAN_HOST_ENHANCE_RATE="2", WAN_HOST_SUBMIT_RATE="1") as there:
        yield there


def test_enhancement_is_limited_in_rate(limited):
    answers = [limited.client.post("/enhance", json={"prompt": "a cat"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert problem(answers[-1], 429)
    assert limited.client.get("/jobs").status_code == 200


def test_submission_is_limited_in_rate(limited):
    assert [limited.client.post("/jobs", json=job(name)).status_code for name in ("a", "b")] == [202, 429]


def test_without_an_enhancer_the_answer_says_so(serve):
    api = serve(WAN_HOST_DISABLED_PLUGINS="wan21,tiny_wan,qwen_enhance,rewriter")
    assert "no installed plugin" in problem(api.client.post("/enhance", json={"prompt": "a cat"}), 503)["detail"]


def test_models_are_loaded_and_unloaded_by_hand(api):
    for name, family in (("instant", "instant"), ("shouter", "qwen")):
        answer = api.client.post("/memory/load", json={"model": name})
        assert (answer.status_code, answer.json()["done"]) == (200, True)
        (lane,) = answer.json()["lanes"]
        (model,) = [item for item in api.client.get("/memory/status").json()["models"] if item["name"] == name]
        assert model["loaded_in"] == [lane]
        assert api.client.get("/health").json()[f"{family}_model_loaded"] is True
        assert api.client.post("/memory/unload", json={"model": name}).json() == {"model": name, "lanes": [lane], "done": True}
        assert api.client.get("/health").json()[f"{family}_model_loaded"] is False


def test_loads_that_wait_for_a_lane_that_works_have_a_limit(api):
    api.submit(job("works", "pace:0.1", num_inference_steps=200))
    api.wait_until_step("works")

    def unload():
        while (answer := api.client.post("/memory/unload", json={"model": "instant"})).status_code == 503:
            time.sleep(0.02)  # a question of the other kind had the last place for a moment
        return answer

    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(unload) for _ in range(16)]
        deadline = time.monotonic() + 10
        # the enhancer's lane is free: what is asked of it is done at once, until there is no place left to wait
        while (refused := api.client.post("/memory/unload", json={"model": "shouter"})).status_code == 200:
            assert time.monotonic() < deadline
        assert "16" in problem(refused, 503)["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        api.client.delete("/jobs/works")
        assert {answer.result().status_code for answer in waiting} == {200}
    assert api.client.post("/memory/load", json={"model": "instant"}).status_code == 200


def test_a_model_that_nobody_offers_or_a_lane_that_cannot_hold_it_is_refused(api):
    assert "instant" in problem(api.client.post("/memory/load", json={"model": "other"}), 422)["detail"]
    assert "generate-cpu" in problem(api.client.post("/memory/load", json={"model": "instant", "lane": "enhance"}), 422)["detail"]
    problem(api.client.post("/memory/unload", json={}), 422)


def test_debug_env_shows_the_settings_and_only_whether_secrets_are_set(api):
    body = api.client.get("/debug/env").json()
    assert body["settings"]["wan_worker_api_key"] == "set"
    assert body["settings"]["job_callback_secret"] == "not set"
    assert body["settings"]["callback_url"] == "set"
    assert body["settings"]["model"] == "instant"
    assert body["models"] == {"instant": "", "shouter": "/models/shouter"}
    assert body["model_paths"]["qwen"] == "/models/shouter"
    assert body["wan_generate_path"] is None
    assert body["environment"]["HF_TOKEN"] == ("set" if os.environ.get("HF_TOKEN") else "not set")


def test_debug_env_names_the_path_of_the_runner_of_wan(serve):
    api = serve(WAN_HOST_DISABLED_PLUGINS="qwen_enhance", WAN_HOST_MODEL="tiny-wan")
    assert api.client.get("/debug/env").json()["wan_generate_path"].endswith("wan_host_wan21/__init__.py")
