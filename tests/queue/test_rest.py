"""The connection by Upstash's REST interface, through a bridge in front of a real Valkey."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from upstash_redis.asyncio import Redis as OfficialClient

from tests.queue.entries import REPORT, claim_ids, claimed, job
from tests.upstash_bridge import Fault, upstash_bridge
from wan_host.errors import PermanentError, SettingsError
from wan_host.queue import QueueUnavailable, open_queue


@pytest.fixture
async def bridge(server_url):
    async with upstash_bridge(server_url) as running:
        yield running


@pytest.fixture
async def open_rest(bridge, name, tmp_path):
    """Open the test's queue over REST."""
    opened = []

    async def open_one(worker_id="rest", **options):
        options = {"lease_seconds": 180.0, "upstash_url": bridge.url, "upstash_token": bridge.token} | options
        queue = await open_queue(None, data_dir=tmp_path, name=name, worker_id=worker_id, **options)
        opened.append(queue)
        return queue

    yield open_one
    bridge.faults.clear()
    for queue in opened:
        await queue.aclose()


@pytest.fixture
async def rest(open_rest):
    return await open_rest()


@pytest.fixture
async def official(bridge):
    async with OfficialClient(bridge.url, bridge.token, rest_retries=0, allow_telemetry=False) as client:
        yield client


class TestAJob:
    async def test_goes_from_push_to_an_accepted_report_in_seven_commands(self, rest, redis, bridge):
        await self.run(rest, redis, "warm")  # the server knows the scripts from now on
        before, asked = rest.commands, len(bridge.requests)
        await self.run(rest, redis, "a")
        assert (
            rest.commands - before == len(bridge.requests) - asked == 7
        )  # one of them a renewal, one an empty look at the outbox
        assert (await rest.job("a")).status == "completed"

    async def run(self, queue, redis, job_id):
        await redis.rpush(queue.name, job(job_id))
        (claim,) = (await queue.poll(claims=1, worker={"device": "cpu"})).claims
        await queue.start(claim)
        await queue.renew([claim], {job_id: {"step": 1}})
        await queue.check(claim)
        await queue.finish(claim, status="published", report=REPORT)
        while reports := await queue.due_reports():
            for report in reports:
                await queue.report_accepted(report)

    async def test_is_the_same_over_both_connections(self, rest, open_):
        tcp = await open_("tcp")
        await tcp.push(job("a", prompt="ein roter Kreis 🔴"))
        (claim,) = (await rest.poll(claims=1, worker={"device": "cuda:0"})).claims
        assert json.loads(claim.payload)["prompt"] == "ein roter Kreis 🔴"
        await rest.start(claim)
        assert await claim_ids(tcp) == []
        assert await tcp.cancel("a") == "cancelling"
        assert await rest.renew([claim]) == {"a": "cancelled"}
        await rest.release(claim, reason="test")
        (again,) = (await tcp.poll(claims=1)).claims
        assert (again.payload, again.attempts) == (claim.payload, 1)
        assert [worker.worker_id for worker in await tcp.workers()] == ["rest"]


class TestAProducer:
    """What the official clients leave in the list."""

    async def test_that_posts_an_array_as_the_edge_function_does_is_understood(self, rest, bridge, name):
        body = json.dumps([job("a")])
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {bridge.token}"}) as client:
            answer = await client.post(f"{bridge.url}/rpush/{name}", content=body, headers={"content-type": "application/json"})
        assert answer.json() == {"result": 1}
        (claim,) = (await rest.poll(claims=1)).claims
        assert claim.payload == job("a")

    async def test_that_uses_the_official_client_is_understood(self, rest, official, name):
        await official.rpush(name, job("a"), json.loads(job("b")))
        pipeline = official.pipeline()
        pipeline.rpush(name, job("c"))
        await pipeline.exec()
        transaction = official.multi()
        transaction.rpush(name, job("d"))
        await transaction.exec()
        assert await claim_ids(rest, 9) == ["a", "b", "c", "d"]

    async def test_whose_entry_is_no_utf8_does_not_break_the_client(self, rest, redis, name):
        await redis.rpush(name, b'{"id": "a", "prompt": "\xff"}', b"\xff\xfe", job("good"))
        poll = await rest.poll(claims=2)
        assert [(claim.job_id, claim.problem) for claim in poll.claims] == [("a", "not_utf8"), ("good", "")]
        assert [letter.head for letter in await rest.dead_letters()] == ["??"]


class TestAFault:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault("reset"),
            Fault("reset", after=True),
            Fault("html", after=True, status=502),
            Fault("html", status=200),
            Fault("json", message={"message": "no"}),
            Fault("json", message=[]),
            Fault("json", message="text"),
            Fault("json", message={"result": "=not base64="}),
            Fault("error", status=500, message={"code": 7}),
            Fault("error", status=500, message="ERR internal error"),
            Fault("error", status=500, message="ERR internal error", after=True),
            Fault("error", status=429, message="ERR max requests limit exceeded. Limit: 500000, Usage: 500000."),
            Fault("error", status=503, message="temporarily unavailable"),
        ],
        ids=lambda fault: f"{fault.kind} {fault.status}{' after the effect' if fault.after else ''}",
    )
    async def test_in_one_answer_is_passed_over_and_nothing_happens_twice(self, fault, rest, bridge):
        await rest.push(job("a"))
        bridge.faults.append(fault)
        (claim,) = (await rest.poll(claims=1)).claims
        bridge.faults.append(fault)
        started = await rest.start(claim)
        assert (started.attempt, (await rest.job("a")).runs) == (1, 1)

    async def test_that_lasts_is_an_unavailable_queue(self, rest, bridge):
        bridge.faults.extend([Fault("reset")] * 2)
        with pytest.raises(QueueUnavailable):
            await rest.poll(claims=1)

    async def test_a_server_that_hangs_is_given_up_in_time(self, rest, bridge, monkeypatch):
        monkeypatch.setattr("wan_host.queue.rest._ANSWER_SECONDS", 0.5)
        bridge.faults.append(Fault("hang", after=True))
        await rest.push(job("a"))
        assert await claim_ids(rest, 2) == ["a"]

    async def test_a_server_that_is_not_there_is_unavailable(self, tmp_path):
        with pytest.raises(QueueUnavailable, match="cannot be reached"):
            await open_queue(
                None,
                data_dir=tmp_path,
                worker_id="w",
                lease_seconds=1,
                upstash_url="http://127.0.0.1:1",
                upstash_token="x",
            )

    async def test_a_wrong_token_is_a_setting_to_mend_and_is_not_shown(self, open_rest):
        with pytest.raises(SettingsError, match="refuses") as caught:
            await open_rest(upstash_token="wrong-secret")
        assert "wrong-secret" not in str(caught.value)

    @pytest.mark.parametrize("url", ["redis://x", "my-database", ""])
    async def test_an_address_of_another_kind_is_a_setting_to_mend(self, url, open_rest):
        with pytest.raises(SettingsError, match="UPSTASH_REDIS_REST_URL"):
            await open_rest(upstash_url=url)

    @pytest.mark.parametrize(
        "message",
        [
            "ERR unknown command 'NOSUCH', with args beginning with: ",
            "ERR wrong number of arguments for 'evalsha' command",
            "ERR Command is not available: 'EVAL'. See https://upstash.com/docs for details",
            "ERR user_script:12: attempt to index a nil value",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
        ],
    )
    async def test_what_no_repetition_can_mend_is_refused_for_good(self, rest, bridge, message):
        bridge.faults.extend([Fault("error", status=400, message=message)] * 2)
        with pytest.raises(PermanentError, match="refuses"):
            await rest.poll(claims=1)

    async def test_a_request_above_the_limit_is_refused_for_good(self, rest):
        with pytest.raises(PermanentError, match="max request size"):
            await rest.push(job("a", extra="x" * 11_000_000))


class TestTheBudget:
    """Every command is billed, so that an idle worker polls seldom and a busy one says much with one command."""

    @pytest.fixture
    def clock(self):
        class Clock:
            now = 0.0

            async def sleep(self, seconds):
                self.now += seconds
                await asyncio.sleep(0)

        return Clock()

    @pytest.mark.parametrize("claims", [1, 0], ids=["with room", "without room"])
    async def test_an_idle_worker_stays_under_300_commands_an_hour(self, open_rest, bridge, clock, claims):
        queue = await open_rest(sleep=clock.sleep)
        while clock.now < 3600:
            await queue.poll(claims=claims, worker={"device": "cpu"})
            await queue.wait(5)
        assert len(bridge.requests) == queue.commands <= 300

    async def test_the_first_poll_after_a_job_comes_soon(self, open_rest, clock):
        queue = await open_rest(sleep=clock.sleep)
        for _ in range(10):
            await queue.poll(claims=1)
            await queue.wait(60)
        await queue.finish(await claimed(queue), status="failed", report=None)
        before = clock.now
        await queue.wait(60)
        assert clock.now - before <= 2

    async def test_what_others_hold_does_not_hurry_an_idle_worker(self, open_rest, open_, clock):
        await claimed(await open_("busy", lease_seconds=1))
        queue = await open_rest(sleep=clock.sleep)
        for _ in range(12):
            poll = await queue.poll(claims=0)
            await queue.poll(claims=1) if poll.next_due is None else None
            await queue.wait(60)
        assert clock.now > 12 * 2

    async def test_a_push_of_the_same_process_ends_the_pause(self, rest):
        for _ in range(5):
            await rest.poll(claims=1)
            rest._idle_polls = 9
        waiting = asyncio.create_task(rest.wait(60))
        await asyncio.sleep(0.05)
        await rest.push(job("a"))
        await asyncio.wait_for(waiting, 1)
        assert await claim_ids(rest) == ["a"]


class TestTheBridge:
    """The stand-in refuses what the service refuses."""

    async def test_refuses_blocking_commands(self, official):
        with pytest.raises(Exception, match="Command is not available"):
            await official.execute(["BLMOVE", "a", "b", "LEFT", "RIGHT", "0"])
        with pytest.raises(Exception, match="Command is not available"):
            await official.execute(["XREADGROUP", "GROUP", "g", "c", "BLOCK", "0", "STREAMS", "s", ">"])

    async def test_answers_strings_in_base64_only_when_asked(self, bridge, name):
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {bridge.token}"}, base_url=bridge.url) as client:
            assert (await client.post("/", json=["SET", name, "é"])).json() == {"result": "OK"}
            assert (await client.get(f"/get/{name}")).json() == {"result": "é"}
            encoded = await client.get(f"/get/{name}", headers={"upstash-encoding": "base64"})
            assert encoded.json() == {"result": "w6k="}
            assert (await client.post(f"/set/{name}?EX=100", content=b"body")).json() == {"result": "OK"}
            assert (await client.get(f"/ttl/{name}")).json()["result"] > 90

    async def test_refuses_strangers_and_malformed_bodies(self, bridge):
        async with httpx.AsyncClient(base_url=bridge.url) as client:
            assert (await client.get("/get/x")).status_code == 401
            assert (await client.get(f"/get/x?_token={bridge.token}")).status_code == 200
            client.headers["authorization"] = f"Bearer {bridge.token}"
            assert (await client.delete("/get/x")).status_code == 405
            for body in (b"", b"{}", b"[]", b"[1]", b'["GET", null]', b'["GET", ["x"]]', b"\xff"):
                assert (await client.post("/", content=body)).status_code == 400
            assert (await client.post("/", json=["NOSUCH"])).json()["error"].startswith("ERR unknown command")

    async def test_runs_pipelines_and_transactions(self, bridge, name):
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {bridge.token}"}, base_url=bridge.url) as client:
            commands = [["SET", name, "1"], ["INCR", name], ["LPUSH", name, "x"]]
            for path in ("/pipeline", "/multi-exec"):
                results = (await client.post(path, json=commands)).json()
                assert results[:2] == [{"result": "OK"}, {"result": 2}]
                assert results[2]["error"].startswith("WRONGTYPE")
            refused = await client.post("/multi-exec", json=[["SET", name, "9"], ["NOSUCH"]])
            assert refused.status_code == 400
            assert (await client.get(f"/get/{name}")).json() == {"result": "2"}
