"""A run: its stages, its contexts, and how long it will still need."""

import contextlib
import time
from pathlib import Path

import pytest

from wan_host.errors import DeadlineExceeded, JobCancelled
from wan_host.run import Expected, Run


class Clock:
    """The monotonic clock, moved by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def run(deadline=2000.0, **values):
    return Run(job_id="j", user_id="u", token=1, attempt=1, deadline=deadline, workdir=Path("/w"), started=1000.0, **values)


def test_stages_are_timed_and_visits_add_up(clock):
    one = run()
    with one.timed("fetch"):
        assert one.stage == "fetch"
        clock.pass_(2)
    with contextlib.suppress(ValueError), one.timed("fetch"):
        clock.pass_(3)
        raise ValueError
    assert one.seconds == {"fetch": 5.0}
    assert one.elapsed() == 5.0


def test_everybody_who_listens_hears_of_every_move(clock):
    heard = []
    one = run(on_change=lambda run: heard.append((run.stage, run.step, run.total)))
    one.enter("waiting")
    one.stepped("denoise", 1, 4)
    clock.pass_(7)
    one.progressed()
    assert heard == [("waiting", 0, 0), ("denoise", 1, 4), ("denoise", 1, 4)]
    assert one.last_progress == clock.now
    assert one.progress() == {"stage": "denoise", "step": 1, "total": 4}


def test_nothing_is_estimated_before_the_pace_is_known(clock):
    one = run()
    assert one.seconds_left() is None
    one.stepped("load", 0, 0)
    assert one.seconds_left() is None
    one.stepped("denoise", 1, 10)
    assert one.seconds_left() is None


def test_the_estimate_follows_the_pace_of_the_steps_and_not_of_what_came_before(clock):
    one = run()
    one.stepped("load", 0, 0)
    clock.pass_(100)
    one.stepped("denoise", 1, 10)
    clock.pass_(2)
    one.stepped("denoise", 2, 10)
    assert one.seconds_left() == pytest.approx(16)
    clock.pass_(2)
    one.stepped("denoise", 3, 10)
    assert one.seconds_left() == pytest.approx(14)


def test_within_a_step_the_estimate_goes_down_and_never_below_zero(clock):
    one = run()
    one.stepped("denoise", 1, 4)
    clock.pass_(10)
    one.stepped("denoise", 2, 4)
    clock.pass_(5)
    assert one.seconds_left() == pytest.approx(15)
    clock.pass_(500)
    assert one.seconds_left() == 0


def test_a_lane_that_is_overdue_is_not_free_before_its_steps_are_done(clock):
    one = run()
    one.stepped("denoise", 1, 4)
    clock.pass_(10)
    one.stepped("denoise", 2, 4)
    clock.pass_(500)
    assert 0 < one.lane_seconds_left() < 0.1
    one.stepped("denoise", 4, 4)
    assert one.lane_seconds_left() == 0
    one.stepped("denoise", 3, 4)
    one.enter("encode")
    assert one.lane_seconds_left() == 0


def test_each_image_of_a_job_is_estimated_anew(clock):
    one = run()
    one.stepped("denoise", 1, 2)
    clock.pass_(50)
    one.stepped("denoise", 2, 2)
    one.stepped("denoise", 1, 2)
    assert one.seconds_left() is None


def test_a_lane_is_about_to_be_free_when_the_last_step_is_done(clock):
    one = run()
    one.stepped("denoise", 1, 1)
    assert one.seconds_left() == 0
    one.stepped("decode", 1, 1)
    assert one.seconds_left() == 0


def test_before_the_pace_is_known_the_lane_needs_what_such_jobs_took_before(clock):
    one = run(expected=Expected(before=3, denoise=8, after=1))
    one.stepped("text_encode", 0, 0)
    assert one.lane_seconds_left() is None
    one.stepped("denoise", 0, 0)
    clock.pass_(3)
    assert one.lane_seconds_left() == pytest.approx(5)
    clock.pass_(30)
    assert 0 < one.lane_seconds_left() < 0.1, "not free yet: its steps are not done"
    one.stepped("denoise", 1, 4)
    clock.pass_(2)
    one.stepped("denoise", 2, 4)
    assert one.lane_seconds_left() == one.seconds_left() == pytest.approx(4)


@pytest.mark.parametrize("stage", ["encode", "postprocess", "spool", "publish", "report"])
def test_behind_the_lane_nothing_is_left_to_wait_for(clock, stage):
    one = run()
    one.enter(stage)
    assert one.seconds_left() == 0


def test_a_context_ends_at_the_deadline_or_at_its_own_time_whichever_is_first(clock):
    one = run(deadline=1010.0)
    assert one.context(5).remaining() == 5
    assert one.context(60).remaining() == 10
    assert one.context(60, past_deadline=True).remaining() == 60
    context = one.context(60)
    assert (context.job_id, context.user_id, context.workdir) == ("j", "u", Path("/w"))
    context.check()
    clock.pass_(10)
    with pytest.raises(DeadlineExceeded, match="job j ran out of time"):
        context.check()


def test_a_cancelled_run_stops_what_runs_and_what_would_start(clock):
    one = run()
    before = one.context(60)
    one.cancel()
    for context in (before, one.context(60), one.context(60, past_deadline=True)):
        with pytest.raises(JobCancelled, match="job j was cancelled"):
            context.check()
