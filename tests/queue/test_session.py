"""Requests whose answer is lost are asked once more, and nothing happens twice."""

from __future__ import annotations

import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, dropped, job
from wan_host.errors import InvalidJob, SettingsError
from wan_host.queue import JobQueue, QueueUnavailable
from wan_host.queue.scripts import load_script
from wan_host.queue.transport import Transport


class LosesAnswers(Transport):
    """A connection that loses every first answer after the server has done its work."""

    backend = "redis"

    def __init__(self, inner: Transport) -> None:
        super().__init__("lossy")
        self.inner = inner
        self.lost: set[tuple[str, ...]] = set()

    async def execute(self, *command):
        self.commands += 1
        answer = await self.inner.execute(*command)
        asked = command[2:] if command[0] in {"EVAL", "EVALSHA"} else command  # one request, by the script's text or by its hash
        if asked not in self.lost:
            self.lost.add(asked)
            raise QueueUnavailable("the answer is lost")
        return answer

    async def wait(self, source, destination, seconds, idle):
        return await self.inner.wait(source, destination, seconds, idle)

    async def aclose(self):
        pass


@pytest.fixture
async def lossy(open_):
    queue = await open_()
    queue._transport = LosesAnswers(queue._transport)
    yield queue
    queue._transport = queue._transport.inner


async def test_a_push_is_done_once(lossy, redis, name):
    await lossy.push(job("a"))
    assert await redis.llen(name) == 1


async def test_a_list_is_pushed_once_and_in_its_order(lossy, redis, name):
    jobs = [job(f"j{index}", extra="x" * 3000) for index in range(200)]
    await lossy.push(*jobs)
    assert await redis.lrange(name, 0, -1) == jobs


async def test_a_list_is_pushed_in_few_commands_none_of_them_large(queue, redis, name, monkeypatch):
    sent = []
    execute = queue._transport.execute
    monkeypatch.setattr(queue._transport, "execute", lambda *command: sent.append(command) or execute(*command))
    small, large = [job(f"s{index}") for index in range(100)], [job(f"l{index}", extra="x" * 150_000) for index in range(4)]
    await queue.push(*small, *large)
    assert sum(command[0] == "EVALSHA" for command in sent) == 4
    assert max(sum(map(len, command)) for command in sent) < 300_000
    await queue.push()
    assert await redis.llen(name) == 104


async def test_nothing_of_a_list_is_pushed_where_one_is_no_utf8(queue, redis, name):
    with pytest.raises(InvalidJob, match="UTF-8"):
        await queue.push(job("a"), b"\xff")
    assert await redis.llen(name) == 0


async def test_a_poll_claims_the_same_jobs_again(lossy: JobQueue, redis, name):
    await redis.rpush(name, job("a"), "poison", job("a"), job("b"))
    poll = await lossy.poll(claims=1, worker={"device": "cpu"})
    (claim,) = poll.claims
    assert claim.payload == job("a")
    assert [poison.reason for poison in poll.poisoned] == ["not_json"]
    assert dropped(poll) == ["a"]
    assert (await lossy.depth()).leased == 1
    await lossy.check(claim)
    assert await claim_ids(lossy) == ["b"]


async def test_a_run_is_counted_once(lossy):
    claim = await claimed(lossy)
    assert (await lossy.start(claim)).attempt == 1
    assert (await lossy.job("a")).runs == 1


async def test_a_job_is_handed_back_once(lossy):
    claim = await claimed(lossy)
    await lossy.start(claim)
    await lossy.release(claim, reason="test", refund=True)
    (claim,) = (await lossy.poll(claims=1)).claims
    assert claim.attempts == 0


async def test_a_job_ends_once(lossy):
    claim = await claimed(lossy)
    await lossy.start(claim)
    sequence = await lossy.finish(claim, status="failed", report=REPORT, dead_letter="attempts_exhausted")
    assert (await lossy.job("a")).sequence == sequence
    assert len(await lossy.dead_letters()) == 1
    assert (await lossy.depth()).reports == 1


async def test_a_report_is_taken_again_and_its_outcome_noted_once(lossy, open_):
    other = await open_("w2")
    await other.finish(await claimed(other), status="published", report=REPORT)
    (report,) = await other.due_reports()
    await other.report_retry(report, 0, "503")
    (report,) = await lossy.due_reports()
    await lossy.report_retry(report, 0, "503")
    (report,) = await lossy.due_reports()
    assert report.tries == 2
    await lossy.report_accepted(report)
    assert (await lossy.job("a")).status == "completed"


async def test_a_cancelled_and_a_retried_job_answer_the_same_again(lossy):
    await lossy.push(job("a"))
    await lossy.poll(claims=0)
    assert await lossy.cancel("a") == "cancelled"
    assert await lossy.retry("a")
    assert await claim_ids(lossy, 2) == ["a"]


async def test_a_server_that_does_not_answer_at_all_raises_after_two_tries(queue, monkeypatch):
    calls = []

    async def silent(*command):
        calls.append(command)
        raise QueueUnavailable("down")

    monkeypatch.setattr(queue._transport, "execute", silent)
    with pytest.raises(QueueUnavailable, match="down"):
        await queue.poll(claims=1)
    assert len(calls) == 2
    assert calls[0] == calls[1]


async def test_closing_does_not_fail_because_the_server_is_away(open_, monkeypatch):
    queue = await open_()
    await queue.poll(claims=0, worker={"device": "cpu"})

    async def silent(*command):
        raise QueueUnavailable("down")

    monkeypatch.setattr(queue._transport, "execute", silent)
    await queue.aclose()


async def test_a_script_that_the_server_has_forgotten_is_sent_again(queue, redis, name):
    await queue.poll(claims=1)
    await redis.script_flush()
    before = queue.commands
    await queue.poll(claims=1)
    assert queue.commands == before + 2
    await queue.poll(claims=1)
    assert queue.commands == before + 3


async def test_a_server_that_keeps_no_scripts_costs_one_command_after_a_while(queue, redis):
    for _ in range(3):
        await redis.script_flush()
        await queue.poll(claims=1)
    await redis.script_flush()
    before = queue.commands
    await queue.poll(claims=1)
    assert queue.commands == before + 1


async def test_a_queue_of_another_version_is_refused(queue, open_, redis, name):
    await queue.poll(claims=0)
    await redis.hset(f"{{{name}}}:meta", "schema", "2")
    with pytest.raises(SettingsError, match="another version"):
        await open_("w2")


@pytest.mark.parametrize("script", ["poll", "finish", "renew"])
def test_a_script_says_its_arguments_and_reply(script):
    text = load_script(script).text
    assert f"-- {script}.lua:" in text
    assert "-- reply" in text
