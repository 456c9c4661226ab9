"""The connection by the Redis protocol."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, job
from wan_host.errors import PermanentError, SettingsError
from wan_host.queue import QueueUnavailable, open_queue
from wan_host.queue.tcp import TcpTransport
from wan_host.queue.transport import NoScript, server_error


async def test_an_idle_worker_is_woken_by_a_push(queue, redis, name):
    waiting = asyncio.create_task(queue.wait(5))
    await asyncio.sleep(0.05)
    pushed = time.monotonic()
    await redis.rpush(name, job("a"))
    await waiting
    assert await claim_ids(queue) == ["a"]
    assert time.monotonic() - pushed < 0.5


async def test_waiting_ends_in_time(queue):
    start = time.monotonic()
    await queue.wait(0.1)
    assert 0.05 < time.monotonic() - start < 1


async def test_waiting_ends_when_a_delay_is_over(queue):
    await queue.release(await claimed(queue), reason="test", defer=0.1)
    await queue.poll(claims=1)
    start = time.monotonic()
    await queue.wait(5)
    assert time.monotonic() - start < 1
    assert await claim_ids(queue) == ["a"]


async def test_a_worker_that_wants_no_job_takes_nothing_while_it_waits(queue, redis, name):
    await queue.poll(claims=0)
    await redis.rpush(name, job("a"))
    await queue.wait(0.05)
    assert await redis.llen(name) == 1


async def test_a_wait_that_is_cancelled_loses_nothing(queue, redis, name):
    for index in range(20):
        waiting = asyncio.create_task(queue.wait(5))
        await asyncio.sleep(0.002)
        push = asyncio.create_task(redis.rpush(name, job(f"j{index}")))
        waiting.cancel()
        await asyncio.gather(waiting, push, return_exceptions=True)
    assert sorted(await claim_ids(queue, 50)) == sorted(f"j{index}" for index in range(20))


async def test_a_command_that_is_cancelled_does_not_leave_its_answer_for_the_next(queue, redis, name):
    for index in range(30):
        polling = asyncio.create_task(queue.poll(claims=0))
        await asyncio.sleep(index * 0.00005)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        assert await queue.job("nobody") is None
    await claimed(queue)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nowhere/queue.sock"])
async def test_a_server_that_is_not_there_is_unavailable(url, tmp_path):
    with pytest.raises(QueueUnavailable, match="does not answer"):
        await open_queue(url, data_dir=tmp_path, worker_id="w", lease_seconds=1)


@pytest.mark.parametrize("url", ["http://host/", "redis:/x", "host:6379", "redis://host:port/0"])
async def test_a_url_of_another_kind_is_refused(url, tmp_path):
    with pytest.raises(SettingsError, match="WAN_HOST_QUEUE_URL"):
        await open_queue(url, data_dir=tmp_path, worker_id="w", lease_seconds=1)


async def test_messages_do_not_show_the_password(tmp_path):
    with pytest.raises(QueueUnavailable) as caught:
        await open_queue("redis://user:secret@127.0.0.1:1/0", data_dir=tmp_path, worker_id="w", lease_seconds=1)
    assert "secret" not in str(caught.value)


async def test_a_server_that_wants_a_password_is_a_setting_to_mend(server_url, redis, name, tmp_path):
    await redis.acl_setuser("stranger", enabled=True, passwords=["+right"], keys=["nothing"], commands=["+ping"])
    transport = TcpTransport(server_url.replace("unix://", "unix://stranger:wrong@"))
    with pytest.raises(SettingsError, match="credentials"):
        await transport.execute("PING")
    await transport.aclose()
    transport = TcpTransport(server_url.replace("unix://", "unix://stranger:right@"))
    with pytest.raises(SettingsError, match="credentials"):
        await transport.execute("GET", "x")
    await transport.aclose()
    await redis.acl_deluser("stranger")


async def test_a_list_that_is_no_list_is_told(queue, redis, name):
    await redis.set(name, "x")
    with pytest.raises(PermanentError, match="WRONGTYPE"):
        await queue.poll(claims=1)


async def test_a_server_without_memory_is_unavailable_not_broken(queue, redis, name):
    claim = await claimed(queue, "running")
    other = await claimed(queue, "other")
    await queue.push(job("moved"))
    await queue.poll(claims=0)
    await queue.push(job("pushed"))
    await redis.config_set("maxmemory", "1")
    try:
        for operation in (
            lambda: queue.push(job("b")),
            lambda: queue.poll(claims=5),
            lambda: queue.start(claim),
            lambda: queue.renew([claim]),
            lambda: queue.finish(claim, status="published", report=REPORT),
            lambda: queue.release(other, reason="test"),
            lambda: queue.cancel("moved"),
        ):
            with pytest.raises(QueueUnavailable, match="OOM"):
                await operation()
    finally:
        await redis.config_set("maxmemory", "0")
    await queue.finish(claim, status="published", report=REPORT)
    await queue.release(other, reason="test")
    assert await claim_ids(queue, 5) == ["other", "moved", "pushed"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("OOM command not allowed", QueueUnavailable),
        ("Error running script (call to f_a1): @user_script:146: @user_script: 146: -OOM command not allowed", QueueUnavailable),
        ("LOADING the dataset is in memory soon", QueueUnavailable),
        ("WRONGPASS invalid", SettingsError),
        ("ERR unknown command", PermanentError),
        ("NOSCRIPT No matching script", NoScript),
    ],
)
def test_an_answer_with_an_error_is_told_by_what_can_be_done_about_it(message, kind):
    assert type(server_error(message, where="here")) is kind


async def test_a_server_that_hangs_is_given_up_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("wan_host.queue.tcp._ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("wan_host.queue.tcp._BLOCK_GRACE", 0.1)

    async def hang(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        transport = TcpTransport(f"redis://127.0.0.1:{port}/0")
        with pytest.raises(QueueUnavailable):
            await transport.execute("PING")
        with pytest.raises(QueueUnavailable):
            await transport.wait("a", "b", 0.1, 0)
        await transport.aclose()
