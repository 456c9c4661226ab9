"""What producers push, and what becomes of it."""

from __future__ import annotations

import json

import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, dropped, job
from wan_host.errors import InvalidJob

TEXT = job("a", config={"frames": 9, "empty": []}, big=9007199254740993)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(TEXT, id="an object"),
        pytest.param(json.dumps([TEXT]), id="an array of one string, as the REST interface leaves it"),
        pytest.param(f" [ {TEXT} ]\n", id="an array of one object"),
        pytest.param(json.dumps(TEXT), id="a JSON string"),
        pytest.param(json.dumps([json.dumps([TEXT])]), id="both"),
    ],
)
async def test_an_entry_is_accepted_in_every_form_and_its_text_is_kept(entry, queue, redis, name):
    await redis.rpush(name, entry)
    (claim,) = (await queue.poll(claims=1)).claims
    assert claim.payload.strip() == TEXT
    assert claim.job_id == "a"


@pytest.mark.parametrize("entry", [b'{"id": "\xff"}', '{"id": "\ud83d"}'])
async def test_what_is_no_utf8_cannot_be_pushed_by_this_process(entry, queue):
    with pytest.raises(InvalidJob, match="UTF-8"):
        await queue.push(entry)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("", "not_json"),
        ("red circle", "not_json"),
        ('{"id": "a"', "not_json"),
        ("\ufeff" + TEXT, "not_json"),
        ("[" * 5000 + "]" * 5000, "not_json"),
        ("null", "not_an_object"),
        ("true", "not_an_object"),
        ("17", "not_an_object"),
        ("[]", "not_an_object"),
        ("[null]", "not_an_object"),
        ('["{}", "{}"]', "not_an_object"),
        (json.dumps([[[[[[TEXT]]]]]]), "not_an_object"),
        ("{}", "no_id"),
        ('{"id": null}', "no_id"),
        ('{"id": 17}', "invalid_id"),
        ('{"id": {"a": 1}}', "invalid_id"),
        ('{"id": ""}', "invalid_id"),
        ('{"id": ".."}', "invalid_id"),
        ('{"id": "a/b"}', "invalid_id"),
        ('{"id": "a\\u0000"}', "invalid_id"),
        ('{"id": "\\ud83d"}', "invalid_id"),
        (json.dumps({"id": "a" * 129}), "invalid_id"),
        (b'{"id": "\xff"}', "invalid_id"),
        (b"\xff\xfe\x00", "not_json"),
    ],
)
async def test_an_entry_without_a_usable_id_is_a_dead_letter_at_once_and_blocks_nobody(entry, reason, queue, redis, name):
    await redis.rpush(name, entry, job("good"))
    poll = await queue.poll(claims=1)
    assert [claim.job_id for claim in poll.claims] == ["good"]
    assert [poison.reason for poison in poll.poisoned] == [reason]
    (letter,) = await queue.dead_letters()
    assert letter.reason == reason
    assert letter.letter == poll.poisoned[0].letter
    assert letter.size == len(entry.encode() if isinstance(entry, str) else entry)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": 17},
        {"config": []},
        {"config": "x", "metadata": 3},
        {"priority": "high"},
        {"priority": 10},
        {"priority": -1},
        {"priority": 1.5},
        {"priority": float("nan")},
        {"seed": "twelve"},
        {"deep": json.loads("[" * 900 + "]" * 900)},
    ],
)
async def test_an_entry_with_a_usable_id_is_claimed_whatever_else_is_wrong_with_it(fields, queue, redis, name):
    await redis.rpush(name, job("a", **fields))
    assert await claim_ids(queue) == ["a"]


async def test_half_an_emoji_does_not_lose_the_job(queue, redis, name):
    text = '{"id": "a", "prompt": "\\\\ud83d \\ud83d"}'
    await redis.rpush(name, text, json.dumps([text.replace('"a"', '"b"')]))
    poll = await queue.poll(claims=2)
    assert [claim.payload for claim in poll.claims] == [text, text.replace('"a"', '"b"')]


async def test_text_in_every_script_is_kept(queue, redis, name):
    prompt = "ein roter Kreis, красный круг, 赤い円, 🔴, \U0010ffff"
    await redis.rpush(name, json.dumps({"id": "a", "prompt": prompt}, ensure_ascii=False))
    (claim,) = (await queue.poll(claims=1)).claims
    assert json.loads(claim.payload)["prompt"] == prompt
    assert claim.problem == ""


async def test_an_entry_that_is_no_utf8_is_claimed_by_its_id_with_the_problem(queue, redis, name):
    await redis.rpush(name, b'{"id": "a", "prompt": "\xc0\xaf"}')
    (claim,) = (await queue.poll(claims=1)).claims
    assert (claim.problem, json.loads(claim.payload)) == ("not_utf8", {"id": "a"})


@pytest.mark.parametrize("user", [("a" + "é" * 80).encode(), b"\xff\xfe", b"x" * 200 + b"\xc3"])
async def test_bytes_of_a_stranger_break_no_listing(user, queue, redis, name):
    await redis.rpush(name, b'{"id": "odd", "user_id": "%b", "prompt": "%b"}' % (user, user), b'{"id": "%b"}' % user, job("good"))
    poll = await queue.poll(claims=2)
    odd = poll.claims[0]
    assert [claim.job_id for claim in poll.claims] == ["odd", "good"]
    assert {state.job_id for state in await queue.jobs()} == {"odd", "good"}
    await queue.finish(odd, status="failed", report=REPORT, error={"e": 1}, dead_letter="invalid_job")
    assert {state.job_id for state in await queue.jobs()} == {"odd", "good"} == (await queue.states(["odd", "good"])).keys()
    assert {letter.reason for letter in await queue.dead_letters()} == {"invalid_job", "invalid_id"}


async def test_an_entry_above_the_limit_is_claimed_by_its_id_with_the_problem(open_, redis, name):
    queue = await open_(entry_limit=1000)
    await redis.rpush(name, job("a", extra="x" * 1000), "y" * 1001)
    poll = await queue.poll(claims=1)
    (claim,) = poll.claims
    assert (claim.problem, json.loads(claim.payload)) == ("too_large", {"id": "a"})
    assert [(poison.reason, len(poison.head)) for poison in poll.poisoned] == [("too_large", 1001)]
    await queue.finish(claim, status="failed", report=REPORT, dead_letter="too_large")
    letter = (await queue.dead_letters())[0]
    assert letter.job_id == "a"
    assert letter.head.startswith('{"id": "a"')
    assert len(letter.head) == 1024


async def test_a_prompt_of_ten_megabytes_does_not_stop_the_queue(queue, redis, name):
    await redis.rpush(name, job("a", extra="é" * 5_000_000), job("b"))
    poll = await queue.poll(claims=2)
    assert [(claim.job_id, claim.problem) for claim in poll.claims] == [("a", "too_large")]
    assert await claim_ids(queue) == ["b"]


@pytest.mark.parametrize("place", ["config", "metadata", None])
async def test_the_seed_of_the_payload_is_used(place, queue):
    fields = {"seed": 9007199254740993}
    claim = await claimed(queue, **({place: fields} if place else fields))
    assert claim.seed == 9007199254740993


async def test_a_missing_seed_is_drawn_once_and_the_same_for_every_attempt(queue):
    first = await claimed(queue)
    await queue.release(first, reason="test")
    (second,) = (await queue.poll(claims=1)).claims
    assert first.seed is not None
    assert 0 <= first.seed < 2**31
    assert second.seed == first.seed
    assert (await claimed(queue, "b")).seed != first.seed


async def test_the_same_id_draws_another_seed_when_it_is_submitted_anew(queue):
    first = await claimed(queue)
    await queue.finish(first, status="failed", report=None)
    assert (await claimed(queue)).seed != first.seed


async def test_a_seed_that_is_no_integer_is_left_to_the_host(queue):
    assert (await claimed(queue, seed="twelve")).seed is None


async def test_the_oldest_of_the_highest_priority_comes_first(queue, redis, name):
    for index, priority in enumerate([0, 5, 9, 5, None, 0]):
        await redis.rpush(name, job(f"j{index}", **({} if priority is None else {"priority": priority})))
    assert await claim_ids(queue, 6) == ["j2", "j1", "j3", "j0", "j4", "j5"]


async def test_a_job_that_was_handed_back_goes_before_newer_ones_of_its_priority(queue, redis, name):
    claim = await claimed(queue, "old")
    await redis.rpush(name, job("new"), job("urgent", priority=1))
    await queue.release(claim, reason="test")
    assert await claim_ids(queue, 3) == ["urgent", "old", "new"]


async def test_one_poll_moves_a_bounded_number_of_entries(open_, redis, name):
    queue = await open_(moved_a_poll=64)
    await redis.rpush(name, *(job(f"j{index}") for index in range(200)))
    poll = await queue.poll(claims=1)
    assert (poll.moved, poll.depth) == (64, 199)
    assert await redis.llen(name) == 136


async def test_entries_that_a_dead_reader_had_taken_are_not_lost_and_come_first(queue, redis, name):
    await redis.rpush(f"{{{name}}}:intake", job("first"))
    await redis.rpush(name, job("second"))
    assert await claim_ids(queue, 2) == ["first", "second"]


class TestAPushedIdThatIsKnown:
    async def test_is_dropped_while_it_waits(self, queue):
        await queue.push(job("a", prompt="first"))
        await queue.push(job("a", prompt="second"))
        poll = await queue.poll(claims=5)
        assert dropped(poll) == ["a"]
        assert [json.loads(claim.payload)["prompt"] for claim in poll.claims] == ["first"]

    async def test_is_dropped_while_it_runs(self, queue):
        claim = await claimed(queue)
        await queue.push(job("a"))
        assert dropped(await queue.poll(claims=1)) == ["a"]
        await queue.start(claim)
        await queue.push(job("a"))
        poll = await queue.poll(claims=1)
        assert (dropped(poll), poll.claims) == (["a"], ())

    async def test_is_reported_again_when_it_is_completed(self, queue):
        claim = await claimed(queue)
        await queue.finish(claim, status="published", report=REPORT)
        (report,) = await queue.due_reports()
        await queue.report_accepted(report)
        await queue.push(job("a"))
        poll = await queue.poll(claims=1)
        assert (poll.claims, poll.due_reports) == ((), 1)
        (again,) = await queue.due_reports()
        assert again.sequence > report.sequence
        assert {**again.report, "sequence": 0} == {**report.report, "sequence": 0}
        assert (await queue.job("a")).status == "completed"

    async def test_runs_anew_when_it_had_failed(self, queue):
        claim = await claimed(queue, prompt="first")
        run = await queue.start(claim)
        await queue.finish(claim, status="failed", report=REPORT, dead_letter="attempts")
        await queue.push(job("a", prompt="second"))
        poll = await queue.poll(claims=1)
        (again,) = poll.claims
        assert json.loads(again.payload)["prompt"] == "second"
        assert again.attempts == 0
        assert again.token > claim.token
        assert (await queue.start(again)).attempt == run.attempt + 1
        assert await queue.dead_letters() == []
        assert dropped(poll) == []

    async def test_stays_cancelled_and_is_reported_again(self, queue):
        await queue.push(job("a"))
        assert await queue.cancel("a") == "cancelled"
        (report,) = await queue.due_reports()
        await queue.report_accepted(report)
        await queue.push(job("a"))
        poll = await queue.poll(claims=1)
        assert (poll.claims, poll.due_reports) == ((), 1)
