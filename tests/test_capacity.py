"""How many jobs a worker claims: as many as have a lane soon, and no more."""

from pathlib import Path

import pytest

from wan_host.capacity import calls_of_a_stage, jobs_to_claim
from wan_host.run import Run


class At(Run):
    """A run that says how long its lane needs."""

    def lane_seconds_left(self):
        return self.left


def run(left, stage="denoise"):
    made = At(job_id="j", user_id="u", token=1, attempt=1, deadline=1e9, workdir=Path("/w"), stage=stage)
    made.left = left
    return made


def wanted(*runs, lanes=1, prefetch_seconds=20):
    return jobs_to_claim(runs, lanes=lanes, prefetch_seconds=prefetch_seconds)


def test_every_free_lane_gets_a_job():
    assert wanted() == 1
    assert wanted(lanes=3) == 3
    assert wanted(run(None), run(500), lanes=3) == 1


@pytest.mark.parametrize(("left", "expected"), [(None, 0), (21, 0), (20, 1), (0.01, 1), (0, 1)])
def test_the_next_job_is_claimed_when_the_lane_is_about_to_be_free(left, expected):
    assert wanted(run(left)) == expected


def test_one_job_waits_for_a_lane_and_not_two():
    assert wanted(run(5), run(None, "fetch")) == 0
    assert wanted(run(0, "decode"), run(None, "waiting")) == 0


def test_lanes_that_end_together_get_a_job_each():
    assert wanted(run(5), run(3), run(500), lanes=3) == 2
    assert wanted(run(5), run(3), run(None, "waiting"), lanes=2) == 1


def test_slow_publishing_holds_no_lane_up_until_very_much_waits():
    assert wanted(*(run(0, "publish") for _ in range(23))) == 1
    assert wanted(*(run(0, "publish") for _ in range(24))) == 0


def test_clips_wait_for_the_encoder_in_bounded_number_because_their_frames_stand_in_memory():
    assert wanted(*(run(0, "encode") for _ in range(3))) == 1
    assert wanted(*(run(0, "encode") for _ in range(3)), run(0, "postprocess")) == 0
    assert wanted(*(run(0, "encode") for _ in range(4)), lanes=2) == 2


@pytest.mark.parametrize("lanes", [1, 2, 8, 12])
@pytest.mark.parametrize(("stage", "calls"), [("encode", 6), ("publish", 1)])
def test_a_stage_has_room_for_whatever_the_claims_let_come(lanes, stage, calls):
    """The claims stop, but what is in the lanes and what waits for them still comes: image jobs of six, at worst."""
    runs = []
    while wanted(*runs, lanes=lanes):
        runs.append(run(0, stage))
    coming = [run(5) for _ in range(lanes)]
    coming += [run(None, "waiting") for _ in range(wanted(*runs[1:], *coming, lanes=lanes))]
    assert len(coming) == 2 * lanes
    assert calls * (len(runs[1:]) + len(coming)) <= calls_of_a_stage(lanes)
