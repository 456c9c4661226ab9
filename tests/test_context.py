"""The context of hooks in the host: it ends by cancelling, by its deadline, and from any thread."""

import threading
import time
from pathlib import Path

import pytest

from wan_host import DeadlineExceeded, HookContext, JobCancelled
from wan_host.context import StageContext


def context(seconds):
    return StageContext(job_id="j", user_id="u", workdir=Path("/w"), deadline=time.monotonic() + seconds)


def test_it_is_quiet_while_there_is_time():
    one = context(60)
    one.check()
    assert 59 < one.remaining() <= 60


def test_a_passed_deadline_is_an_error_that_no_attempt_mends():
    one = context(-1)
    assert one.remaining() < 0
    with pytest.raises(DeadlineExceeded):
        one.check()


def test_being_cancelled_comes_before_being_late():
    one = context(-1)
    one.cancel()
    with pytest.raises(JobCancelled):
        one.check()


def test_another_thread_can_cancel():
    one = context(60)
    thread = threading.Thread(target=one.cancel)
    thread.start()
    thread.join()
    with pytest.raises(JobCancelled, match="job j was cancelled"):
        one.check()


def test_it_has_all_that_the_contract_promises():
    promised = {name for name in dir(HookContext) if not name.startswith("_")} | set(HookContext.__annotations__)
    assert promised == {"job_id", "user_id", "workdir", "check", "remaining"}
    one = context(1)
    assert all(hasattr(one, name) for name in promised)
