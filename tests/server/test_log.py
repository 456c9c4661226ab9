"""The log of a working worker: every transition of a job in one line, and no prompt."""

import json

from tests.server.conftest import job

WORDS = "zebra-crossing-a-violet-glacier"


def test_every_transition_has_the_job_the_attempt_and_the_stage(serve):
    api = serve(WAN_HOST_MAX_ATTEMPTS="2")
    api.submit(job("good", "pace:0.05"), job("fails", "raise"), job("cancelled", "pace:0.1", num_inference_steps=100))
    api.wait_for("good", "completed")
    api.wait_until_step("cancelled")
    api.client.delete("/jobs/cancelled")
    api.wait_for("cancelled", "cancelled")
    api.wait_for("fails", "failed")
    lines = [line for line in api.worker.events() if "job" in line and line["logger"] != "wan_host.settings"]
    without = [line for line in lines if "attempt" not in line or "stage" not in line]
    assert without == []
    stages = [line["stage"] for line in lines if line["job"] == "good" and line["event"] == "job stage"]
    assert stages[0] == "waiting"
    assert "denoise" in stages
    assert stages[-4:] == ["encode", "postprocess", "spool", "publish"]
    said = {line["event"] for line in lines}
    assert {"job started", "job published", "attempt failed, another follows", "job is being cancelled"} <= said
    assert {"job ended without a result", "report accepted"} <= said


def prompts_of_all_kinds(api):
    """Jobs that go wrong in every place where a message might quote the prompt."""
    entries = [
        job("plain", WORDS),
        job("long", f"{WORDS} " * 200),
        {**job("list"), "prompt": [WORDS]},
        {**job("negative"), "negative_prompt": WORDS, "config": {"negative_prompt": f"{WORDS} too"}},
        {**job("odd-config", WORDS), "config": WORDS},
        {**job("large", WORDS), "metadata": {"note": "x" * 5000}},
        {"prompt": WORDS},
        WORDS,
        [{"prompt": WORDS}, 2],
    ]
    for entry in entries:
        api.client.post("/jobs", json=entry)
        api.site.push(json.dumps(entry))
    api.site.push('{"id": "broken", "prompt": "' + WORDS)
    api.site.push('{"id": "twice", "prompt": "' + WORDS + '", "prompt": 3, "user_id": "u", "type": "video_fast"}')
    api.client.post("/enhance", json={"prompt": f"fault {WORDS}"})
    api.client.post("/enhance", json={"prompt": f"{WORDS} " * 200})
    for name in ("plain", "long", "list", "negative", "odd-config", "large"):
        api.wait_for(name, "completed", "failed")


def test_no_line_has_a_prompt_in_it(serve):
    api = serve(WAN_HOST_LOG_LEVEL="debug", WAN_HOST_MAX_ENTRY_BYTES="4500")
    prompts_of_all_kinds(api)
    lines = [line for line in api.worker.log.read_text().splitlines() if WORDS in line]
    assert lines == []


def test_a_setting_shows_prompts(serve):
    api = serve(WAN_HOST_LOG_PROMPTS="true")
    api.submit(job("shown", WORDS))
    api.wait_for("shown", "completed")
    assert any(line.get("prompt") == WORDS for line in api.worker.events())
