"""Threads for strangers' work: they hold nothing up when they hang."""

import asyncio
import contextvars
import subprocess
import sys
import threading
import time

import pytest

from wan_host.threads import Crowded, StrangerThreads

HANGS = """
import asyncio, time
from wan_host.threads import StrangerThreads

async def main():
    try:
        async with asyncio.timeout(0.1):
            await StrangerThreads(1).run("sink", lambda: time.sleep(60))
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""


async def test_results_and_errors_come_back_to_the_caller():
    threads = StrangerThreads(1)
    assert await threads.run("a", lambda: 5) == 5
    error = ValueError("no")

    def fail():
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        await threads.run("a", fail)
    assert caught.value is error


@pytest.mark.parametrize("kind", [StopIteration, SystemExit])
async def test_what_would_end_the_loop_or_the_wait_becomes_an_error(kind):
    def fail():
        raise kind

    with pytest.raises(RuntimeError, match=f"sink raised {kind.__name__}"):
        async with asyncio.timeout(5):
            await StrangerThreads(1).run("sink", fail)


async def test_work_that_hangs_takes_only_its_own_places():
    threads, release = StrangerThreads(2), threading.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await threads.run("hung", release.wait)
    with pytest.raises(Crowded, match="hung has 2 calls that have not ended"):
        await threads.run("hung", lambda: 1)
    assert await threads.run("other", lambda: 1) == 1
    release.set()
    async with asyncio.timeout(5):
        while True:
            try:
                assert await threads.run("hung", lambda: 2) == 2
                break
            except Crowded:
                await asyncio.sleep(0.01)


async def test_threads_that_have_ended_their_work_take_the_next():
    threads = StrangerThreads(3)
    used = {await threads.run("a", threading.get_ident) for _ in range(20)}
    assert len(used) == 1


async def test_work_sees_the_callers_context():
    variable = contextvars.ContextVar("variable")
    variable.set("here")
    assert await StrangerThreads(1).run("a", variable.get) == "here"


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "given up\n", "")
    assert time.monotonic() - started < 25
