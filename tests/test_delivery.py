"""Reports on their way: what several sinks make of one together, and the outbox that repeats it for hours."""

import asyncio
import math
import threading
import time

import pytest

from tests.test_hooks import hooks_of, plugin
from wan_host import Delivery, Report
from wan_host.delivery import Outbox, deliver
from wan_host.errors import QueueUnavailable
from wan_host.metrics import Metrics
from wan_host.queue import PendingReport

NOW = 1_800_000_000.0


def report(**values):
    return Report(**{"job_id": "j", "attempt": 1, "status": "completed", "sequence": 3, "payload": {}} | values)


def sink(outcome, note="", retry_after=None):
    answer = None if outcome is None else Delivery(outcome=outcome, note=note, retry_after=retry_after)
    return plugin(deliver_report=lambda: answer)


async def together(*answers, timeout=5.0):
    return await deliver(hooks_of(**{f"s{i}": answer for i, answer in enumerate(answers)}), report(), timeout=timeout)


# Several sinks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ((), "accepted"),
        ((None, None), "accepted"),
        (("accepted", None), "accepted"),
        (("accepted", "accepted"), "accepted"),
        (("accepted", "refused"), "refused"),
        (("refused", None), "refused"),
        (("accepted", "retry"), "retry"),
        (("refused", "retry"), "retry"),
    ],
)
async def test_a_report_is_settled_only_when_no_sink_may_still_take_it(outcomes, expected):
    assert (await together(*map(sink, outcomes))).outcome == expected


async def test_the_note_is_that_of_the_sinks_that_decided():
    answer = await together(sink("accepted", "fine"), sink("retry", "503"), sink("retry", "no connection"))
    assert answer.note == "503; no connection"
    assert (await together(sink("accepted", "logged"), sink("accepted"), sink("accepted", "200 OK"))).note == "logged; 200 OK"


async def test_the_longest_wait_that_a_sink_asks_for_counts():
    answer = await together(sink("retry", retry_after=5), sink("retry", retry_after=60), sink("retry"))
    assert answer.retry_after == 60
    assert (await together(sink("accepted", retry_after=9))).retry_after is None
    assert (await together(sink("retry", retry_after=math.nan), sink("retry", retry_after=math.inf))).retry_after is None


async def test_notes_are_kept_short():
    assert len((await together(sink("refused", "x" * 100_000))).note) <= 500


async def test_a_sink_that_raises_is_asked_again_later():
    def fail():
        raise OSError("down")

    assert await together(plugin(deliver_report=fail)) == Delivery(outcome="retry", note="s0: OSError: down")


async def test_sinks_are_asked_at_the_same_time():
    barrier = threading.Barrier(3, timeout=5)

    def meet():
        barrier.wait()

    assert (await together(*(plugin(deliver_report=meet) for _ in range(3)))).outcome == "accepted"


async def test_a_sink_that_hangs_is_not_waited_for_and_learns_of_it():
    release, contexts = threading.Event(), []

    def hang(context):
        contexts.append(context)
        release.wait(10)

    started = time.monotonic()
    answer = await together(plugin(deliver_report=hang), sink("accepted"), timeout=0.2)
    assert answer == Delivery(outcome="retry", note="s0: no answer within 0.2 s")
    assert time.monotonic() - started < 5
    assert contexts[0].remaining() <= 0
    release.set()


async def test_a_sink_is_told_how_long_it_may_take():
    seen = []
    await together(plugin(deliver_report=lambda context: seen.append(context.remaining())), timeout=3)
    assert 2 < seen[0] <= 3


# The outbox -----------------------------------------------------------------------------------------------------------


def pending(job_id="j", *, tries=0, since=NOW, **values):
    base = {"status": "completed", "metadata": {"job_type": "video_fast"}, "sequence": 9}
    return PendingReport(job_id, base | values, 9, 2, tries, "published", since)


class Queue:
    """Hands out what is due, and notes what became of it."""

    def __init__(self, *due):
        self.due = list(due)
        self.told = []
        self.faults = []

    async def due_reports(self, limit):
        if self.faults:
            raise self.faults.pop()
        taken, self.due = self.due[:limit], self.due[limit:]
        return taken

    async def report_accepted(self, report, note=None):
        self.told.append(("accepted", report.job_id, note))
        return len(self.due)

    async def report_retry(self, report, delay, error):
        self.told.append(("retry", report.job_id, delay, error))
        return len(self.due)

    async def report_refused(self, report, error):
        self.told.append(("refused", report.job_id, error))
        return len(self.due)


def outbox(queue, *sinks, give_up_after=3600.0, timeout=5.0):
    hooks = hooks_of(**{f"s{i}": one for i, one in enumerate(sinks)})
    made = Outbox(queue=queue, hooks=hooks, metrics=Metrics(), timeout=timeout, give_up_after=give_up_after)
    made.set_clock(NOW)
    return made


async def test_what_is_accepted_is_told_to_the_queue_with_the_receivers_remark():
    queue = Queue(pending("a"), pending("b"))
    await outbox(queue, sink("accepted", "200 OK")).drain()
    assert sorted(queue.told) == [("accepted", "a", "200 OK"), ("accepted", "b", "200 OK")]  # both at the same time


@pytest.mark.parametrize(("answer", "owed"), [("accepted", 0), ("refused", 0), ("retry", 1)])
async def test_the_gauge_of_owed_reports_follows_every_delivery(answer, owed):
    class Owing(Queue):
        async def report_retry(self, report, delay, error):
            return 1 + await super().report_retry(report, delay, error)

    made = outbox(Owing(pending()), sink(answer))
    made._metrics.report_pending.set(1)
    await made.drain()
    assert f"wan_host_report_pending {owed}.0" in made._metrics.render().decode()


async def test_what_is_refused_is_kept_with_the_reason():
    queue = Queue(pending())
    await outbox(queue, sink("refused", "404")).drain()
    assert queue.told == [("refused", "j", "404")]


@pytest.mark.parametrize(
    ("tries", "asked", "delay"),
    [
        (0, None, 1),
        (1, None, 2),
        (5, None, 32),
        (8, None, 256),
        (9, None, 300),
        (5000, None, 300),
        (0, 60, 60),
        (8, 5, 256),
        (0, -5, 1),
    ],
)
async def test_the_pauses_double_up_to_five_minutes_unless_the_receiver_asks_for_more(tries, asked, delay):
    queue = Queue(pending(tries=tries))
    await outbox(queue, sink("retry", "503", retry_after=asked)).drain()
    assert queue.told == [("retry", "j", delay, "503")]


async def test_the_last_try_comes_when_the_time_is_up_and_then_it_is_given_up():
    queue = Queue(pending(since=NOW - 3500))
    await outbox(queue, sink("retry", "503", retry_after=86400)).drain()
    assert queue.told[0][2] == pytest.approx(100, abs=2)
    queue = Queue(pending(since=NOW - 3601))
    await outbox(queue, sink("retry", "503")).drain()
    assert queue.told == [("refused", "j", "given up after 1.0 hours: 503")]


async def test_a_report_that_was_late_is_still_accepted():
    queue = Queue(pending(since=NOW - 90_000))
    await outbox(queue, sink("accepted")).drain()
    assert queue.told == [("accepted", "j", None)]


async def test_sinks_get_the_report_with_the_key_that_is_the_same_for_every_delivery():
    seen = []
    one = plugin(deliver_report=lambda report: seen.append(report) or Delivery(outcome="accepted"))
    await outbox(Queue(pending(), pending(tries=4)), one).drain()
    assert [item.idempotency_key for item in seen] == ["j:2:completed"] * 2
    assert [(item.sequence, item.payload["sequence"]) for item in seen] == [(9, 9)] * 2


async def test_more_than_a_batch_is_delivered_in_one_go():
    queue = Queue(*(pending(f"j{i}") for i in range(40)))
    await outbox(queue, sink("accepted")).drain()
    assert len(queue.told) == 40


async def test_a_report_without_metadata_or_status_is_delivered_all_the_same():
    queue = Queue(PendingReport("j", {}, 1, 1, 0, "failed", NOW), pending("k", metadata=None))
    await outbox(queue, sink("accepted")).drain()
    assert sorted(told[:2] for told in queue.told) == [("accepted", "j"), ("accepted", "k")]


async def running(made, queue, condition):
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # fakes have no events
                await asyncio.sleep(0.01)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("fault", [QueueUnavailable("down"), KeyError("bug")])
async def test_neither_a_lost_queue_nor_a_bug_ends_the_outbox(fault, monkeypatch):
    monkeypatch.setattr("wan_host.delivery._QUEUE_PAUSE", 0.05)
    queue = Queue(pending())
    queue.faults = [fault]
    made = outbox(queue, sink("accepted"))
    made.wake()
    await running(made, queue, lambda: queue.told)
    assert queue.told == [("accepted", "j", None)]


async def test_one_report_that_cannot_be_noted_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr("wan_host.delivery._QUEUE_PAUSE", 0.05)

    class Picky(Queue):
        async def report_accepted(self, report, note=None):
            if report.job_id == "bad":
                raise KeyError("bug")
            return await super().report_accepted(report, note)

    slow = plugin(deliver_report=lambda report: (report.job_id == "bad" or time.sleep(0.1)) and None)
    first = Picky(pending("bad"), pending("j0"), pending("j1"))
    with pytest.raises(KeyError):
        await outbox(first, slow).drain()
    assert len(first.told) == 2
    queue = Picky(pending("bad"), *(pending(f"j{i}") for i in range(20)))
    made = outbox(queue, sink("accepted"))
    made.wake()
    await running(made, queue, lambda: len(queue.told) == 20)


async def test_a_retry_wakes_the_outbox_when_it_is_due(monkeypatch):
    monkeypatch.setattr("wan_host.delivery._FIRST_DELAY", 0.05)
    answers = [Delivery(outcome="accepted"), Delivery(outcome="retry", note="503")]

    class Repeating(Queue):
        async def report_retry(self, report, delay, error):
            self.due.append(pending(tries=1))
            return await super().report_retry(report, delay, error)

    queue = Repeating(pending())
    made = outbox(queue, plugin(deliver_report=lambda: answers.pop()))  # noqa: PLW0108  # hookimpl marks no built-in
    made.wake()
    await running(made, queue, lambda: len(queue.told) == 2)
    assert [told[0] for told in queue.told] == ["retry", "accepted"]


async def test_deliveries_are_timed_by_job_type():
    made = outbox(Queue(pending()), sink("accepted"))
    await made.drain()
    count = made._metrics.registry.get_sample_value("wan_host_stage_seconds_count", {"stage": "report", "job_type": "video_fast"})
    assert count == 1
