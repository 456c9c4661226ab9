"""The context that hooks are given in a lane."""

from __future__ import annotations

import time

import numpy as np
import pytest

from wan_host.checkpoint import Checkpoint, CheckpointPlan
from wan_host.errors import DeadlineExceeded, JobCancelled
from wan_host.lanes.call_context import CallContext
from wan_host.lanes.limits import LaneLimits
from wan_host.lanes.messages import CheckpointNews, Heartbeat, LoadModel, RunGenerate


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


def kept_by(tmp_path, sent, identity=None, every=2):
    plan = CheckpointPlan(path=str(tmp_path / "job.safetensors"), every=every, identity=identity or {"job": "j"})
    call = RunGenerate(call=1, job_id="j", model="m", remaining=None, request=None, checkpoint=plan)
    context = CallContext(call, device="cpu", send=sent.append)
    context.begin("generate")
    return context


def news(sent):
    return [(message.what, message.step) for message in sent if isinstance(message, CheckpointNews)]


def go(context, steps, total):
    for step in steps:
        context.step(step, total)
        context.checkpoint(lambda step=step: Checkpoint(step=step, arrays={"a": np.full(3, step)}))


def test_checkpoints_are_saved_when_they_are_due_and_gone_on_from(tmp_path):
    sent = []
    first = kept_by(tmp_path, sent)
    assert first.resume({"torch": "2"}) is None
    go(first, range(1, 6), 9)
    second = kept_by(tmp_path, sent)
    found = second.resume({"torch": "2"})
    assert (found.step, found.arrays["a"].tolist(), second.resumed_at) == (4, [4, 4, 4], 4)
    assert news(sent) == [("saved", 2), ("saved", 4), ("resumed", 4)]


def test_a_runner_that_cannot_be_gone_on_from_at_every_step_is_saved_at_the_next_one(tmp_path):
    sent = []
    context = kept_by(tmp_path, sent, every=3)
    context.resume({})
    go(context, [1, 2, 5, 6, 7, 8, 9, 11], 20)
    assert news(sent) == [("saved", 5), ("saved", 8), ("saved", 11)]


@pytest.mark.parametrize(("identity", "made_with"), [({"job": "other"}, {"torch": "2"}), (None, {"torch": "3"})])
def test_a_checkpoint_of_something_else_is_ignored_and_replaced(tmp_path, identity, made_with):
    sent = []
    first = kept_by(tmp_path, sent)
    first.resume({"torch": "2"})
    go(first, [2], 9)
    second = kept_by(tmp_path, sent, identity)
    assert second.resume(made_with) is None
    assert news(sent)[-1] == ("ignored", 2)
    assert "this attempt's" in sent[-1].reason
    go(second, [2], 9)
    assert kept_by(tmp_path, sent, identity).resume(made_with).step == 2


def test_a_checkpoint_that_cannot_be_made_or_kept_is_told_and_harms_nothing(tmp_path):
    sent = []
    context = kept_by(tmp_path / "file", sent)
    (tmp_path / "file").write_text("in the way")
    context.resume({})
    assert news(sent) == [("ignored", 0)]
    go(context, [2], 9)
    context.step(4, 9)
    context.checkpoint(lambda: 1 / 0)
    assert news(sent)[1:] == [("failed", 2), ("failed", 4)]
    assert "ZeroDivisionError" in sent[-1].reason


def test_a_cancel_passes_through_the_saving(tmp_path):
    context = kept_by(tmp_path, [])
    context.resume({})
    context.step(2, 9)
    context.cancel()
    with pytest.raises(JobCancelled):
        context.checkpoint(context.check)


def test_without_a_plan_nothing_is_saved():
    context, _ = make()
    assert context.resume({}) is None
    context.step(2, 9)
    context.checkpoint(lambda: pytest.fail("called"))
