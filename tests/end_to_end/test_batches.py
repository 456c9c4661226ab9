"""`wan-host submit` with many jobs: what is pushed, what is not pushed again, and what people see."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

BASE = {"type": "video_fast", "user_id": "u", "prompt": "a cat"}
CONFIG = {"width": 128, "height": 128, "frames": 5, "fps": 8}


def entry(job_id=None, prompt="a cat", **fields):
    return {**({"id": job_id} if job_id else {}), **BASE, "prompt": prompt, "config": CONFIG, **fields}


@pytest.fixture
def batch(tmp_path):
    """Return a function that writes a file of JSON Lines and returns its path."""

    def write(*entries):
        path = tmp_path / "jobs.jsonl"
        path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in entries))
        return str(path)

    return write


def ended(done):
    """Return the endings by id; a report that is still on its way to the receiver makes no difference here."""
    return {line["job_id"]: line for line in map(json.loads, done.stdout.replace("published", "completed").splitlines())}


def test_prompts_times_parameters_are_run_and_summed_up(busy_site, batch):
    entries = {**entry("grid"), "grid": {"prompt": ["a", "b"], "config.seed": [1, 2]}}
    del entries["prompt"]
    done = busy_site.cli("submit", batch(entries, entry("bad", "refuse")), "--wait", check=False)
    assert done.returncode == 2
    lines = ended(done)
    assert Counter(line["status"] for line in lines.values()) == {"completed": 4, "failed": 1}
    assert lines["bad"]["error"]["error_type"] == "unsupported"
    assert all(line["result"]["assets"][0]["url"] for name, line in lines.items() if name != "bad")
    assert "5 jobs: 5 pushed\n" in done.stderr
    assert "1 failed" in done.stderr
    assert "bad: failed: " in done.stderr
    assert "5/5" in done.stderr


def test_a_batch_with_a_wrong_line_pushes_nothing_unless_told_to(busy_site, batch):
    path = batch(entry("right"), "{", entry("wrong", config={"frames": 99}))
    refused = busy_site.cli("submit", path, check=False)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert f"{path}:2: payload: " in refused.stderr
    assert f"{path}:3: config.frames: 99 is not allowed" in refused.stderr
    assert "2 entries are wrong, nothing was pushed; 1 jobs are right" in refused.stderr
    assert busy_site.cli("jobs", "show", "right", check=False).returncode == 1
    skipped = busy_site.cli("submit", path, "--wait", "--skip-invalid", check=False)
    assert skipped.returncode == 1
    assert ended(skipped)["right"]["status"] == "completed"


@pytest.fixture
def ctrl_c():
    """Let children listen to SIGINT: whatever started the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_the_same_command_goes_on_where_it_was_interrupted(site, batch, tmp_path):
    entries = [entry(f"job-{number}", "pace:0.15", config={**CONFIG, "num_inference_steps": 10}) for number in range(6)]
    runs = tmp_path / "runs"
    site.start(WAN_HOST_TESTING_RUNS=str(runs))
    path = batch(*entries)
    command = [sys.executable, "-m", "wan_host", "submit", path, "--wait"]
    with subprocess.Popen(command, env=site.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert json.loads(first.stdout.readline())["status"] in {"published", "completed"}
            first.send_signal(signal.SIGINT)
            _, said = first.communicate(timeout=20)
        finally:
            first.kill()
    assert first.returncode == 130
    assert "the same command goes on from here" in said
    again = site.cli("submit", batch(*entries, entry("late")), "--wait")
    assert "7 jobs: 1 pushed; before that: " in again.stderr
    assert {line["status"] for line in ended(again).values()} == {"completed"}
    assert Counter(line.split()[0] for line in runs.read_text().splitlines()) == dict.fromkeys(ended(again), 1)


def test_what_failed_is_run_anew_and_what_ended_well_is_not(busy_site, batch, tmp_path):
    path = batch(entry("good"), entry("poor", "refuse"))
    assert busy_site.cli("submit", path, "--wait", check=False).returncode == 2
    again = busy_site.cli("submit", path, "--wait", check=False)
    assert again.returncode == 2
    assert "2 jobs: 1 pushed; before that: 1 ended well, 1 failed" in again.stderr
    mended = busy_site.cli("submit", batch(entry("good"), entry("poor", "a dog")), "--wait")
    assert {line["status"] for line in ended(mended).values()} == {"completed"}


def test_an_id_that_is_taken_by_another_job_is_refused(busy_site, batch):
    busy_site.cli("submit", batch(entry("taken")), "--wait")
    refused = busy_site.cli("submit", batch(entry("fresh"), entry("taken", "another")), check=False)
    assert refused.returncode == 1
    assert "id: 'taken' is not allowed; the queue has another job of that id (" in refused.stderr
    assert busy_site.cli("jobs", "show", "fresh", check=False).returncode == 1
    same = json.dumps(dict(reversed(entry("taken").items())), indent=3)
    assert "1 jobs: 0 pushed" in busy_site.cli("submit", "-", text=same).stderr


def test_without_a_worker_jobs_wait_and_are_not_pushed_twice(site, batch):
    path = batch(*(entry(prompt=f"cat {number}") for number in range(3)))
    first, second = site.cli("submit", path), site.cli("submit", path)
    assert first.stdout == second.stdout
    assert "3 jobs: 0 pushed; before that: 3 waiting" in second.stderr
    assert len(json.loads(site.cli("jobs", "list", "--json").stdout)) == 3


def test_many_jobs_are_pushed_in_seconds(site, batch):
    grid = {**entry("many"), "grid": {"config.seed": list(range(2000))}}
    begun = time.monotonic()
    assert len(site.cli("submit", batch(grid)).stdout.splitlines()) == 2000
    assert time.monotonic() - begun < 20
