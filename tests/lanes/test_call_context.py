"""The context that hooks are given in a lane."""

from __future__ import annotations

import time

import numpy as np
import pytest

from wan_host.errors import DeadlineExceeded, JobCancelled
from wan_host.lanes.call_context import CallContext
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import Heartbeat, LoadModel


def make(remaining=None):
    sent = []
    context = CallContext(LoadModel(call=1, job_id="j", model="m", remaining=remaining), device="cpu", send=sent.append)
    context.begin("generate")
    return context, sent


def test_every_step_is_a_heartbeat_but_progress_in_a_tight_loop_is_not():
    context, sent = make()
    for _ in range(100):
        context.progress()
    assert len(sent) < 10
    before = len(sent)
    for i in range(10):
        context.step(i + 1, 10)
    assert [beat.step for beat in sent[before:]] == list(range(1, 11))
    assert all(isinstance(beat, Heartbeat) for beat in sent)


def test_a_stage_inside_another_is_counted_once():
    context, _ = make()
    with context.stage("denoise"):
        time.sleep(0.02)
        with context.stage("decode"):
            time.sleep(0.04)
    spent = context.spent()
    assert spent.stages["denoise"] < 0.035 < spent.stages["decode"]
    assert sum(spent.stages.values()) == pytest.approx(spent.seconds, abs=0.005)


def test_every_sign_of_life_checks():
    context, _ = make()
    context.cancel()
    for call in (context.check, context.progress, lambda: context.step(1, 2)):
        with pytest.raises(JobCancelled, match="job j was cancelled"):
            call()
    late, _ = make(remaining=-1.0)
    with pytest.raises(DeadlineExceeded, match=r"job j ran out of time \(stage generate\)"):
        late.check()


def test_wrong_stage_names_and_previews_are_refused():
    context, _ = make()
    with pytest.raises(ValueError, match="stage: 'De Noise' is not allowed"), context.stage("De Noise"):
        pass
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        context.preview(np.zeros((8, 8), np.uint8))


def test_previews_are_dropped_where_they_come_too_fast():
    context, sent = make()
    for _ in range(5):
        context.preview(np.zeros((8, 8, 3), np.uint8))
    assert len(sent) == 2


def test_limits_are_positive():
    with pytest.raises(ValueError, match="step: 0 is not allowed"):
        LaneLimits(step=0)
