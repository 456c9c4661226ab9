"""The cut of the chaos suite that runs with the long tests; `make chaos` runs all of it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.chaos.plan import Options, make_plan
from tests.chaos.run import run_chaos


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("topology", ["embedded", "tcp", "rest"])
def test_no_job_is_lost_or_done_twice_while_everything_is_killed(topology):
    options = Options(seed=secrets.randbelow(1 << 31), jobs=150, seconds=30, topology=topology)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))  # pytest's own are too long for a socket's path
    print(f"python -m tests.chaos --seed {options.seed} --jobs 150 --seconds 30 --server {topology}  # logs: {folder}")
    result = run_chaos(options, folder)
    print("\n".join(result.lines()))
    assert not result.wrong
    assert sum(result.killed.values()) >= 10
    shutil.rmtree(folder)


def test_a_seed_replays_jobs_kills_and_their_times():
    options = Options(seed=3, jobs=50)
    first, again = make_plan(options, "http://x"), make_plan(options, "http://x")
    assert first == again
    kills = [kill for kill, _ in zip(first.kills(), range(20), strict=False)]
    assert kills == [kill for kill, _ in zip(again.kills(), range(20), strict=False)]
    assert {kill.kind for kill in kills} == {"worker", "lane", "server"}
    assert make_plan(Options(seed=4, jobs=50), "http://x") != first
