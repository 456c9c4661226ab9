"""The program of a lane: ``python -m wan_host.lanes.lane FD``, started by the supervisor and by nobody else.

The main thread runs hooks, one call at a time. A control thread reads the socket, so that a cancel arrives while a hook runs,
and ends the process and its children at once when the socket closes: the host is gone then. Standard output and error are the
host's log. A fresh interpreter, not a fork: CUDA does not survive one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable

from wan_host.lanes.call_context import CallContext
from wan_host.lanes.channel import BlockingChannel
from wan_host.lanes.hooks import make_hooks
from wan_host.lanes.messages import Call, Cancel, Hello, Ping, Pong, Start, StartFailed, Stop
from wan_host.lanes.work import Work

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the lane whose socket has the descriptor that the first argument names; return the exit status."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(fd, False)  # the signature of os
    _prepare_process(parent)
    channel = BlockingChannel(socket.socket(fileno=fd))
    calls: queue.SimpleQueue[CallContext | None] = queue.SimpleQueue()
    started: queue.SimpleQueue[Start] = queue.SimpleQueue()
    threading.Thread(target=_control, args=(channel, started, calls), name="control", daemon=True).start()
    start = started.get()
    channel.folder = start.folder
    try:
        work = Work(make_hooks(start.hooks, start.hook_options), start.device)
    except Exception as error:  # noqa: BLE001  # plugins are strangers' code
        message = f"{start.hooks} raised {type(error).__name__}: {error}"
        channel.send(StartFailed(message=message[:2000], traceback=traceback.format_exc()))
        return 1
    channel.send(Hello(models=work.offered()))
    while (context := calls.get()) is not None:
        channel.close_sent()
        work.run(context, channel.send)
        context.clips = None  # the control thread knows the context until the next call; the frames are the host's now
        del context
    work.unload_all()
    return 0


def _prepare_process(parent: int) -> None:
    faulthandler.enable()
    # the supervisor asks a hung lane where it hangs before it kills it
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # the host decides when a lane ends, even if a terminal or systemd signals the whole group; functions, unlike SIG_IGN, are
    # not inherited by the programs that plugins start
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if sys.platform == "linux":
        # a second net below the socket: it also works while a hook holds the interpreter lock
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            _end()


def _control(
    channel: BlockingChannel,
    started: queue.SimpleQueue[Start],
    calls: queue.SimpleQueue[CallContext | None],
) -> None:
    device = "cpu"
    contexts: list[CallContext] = []
    try:
        for message in channel.messages():
            match message:
                case Start():
                    device = message.device
                    started.put(message)
                case Cancel():
                    _cancel(context for context in contexts if context.call.call == message.call)
                case Stop():
                    _cancel(contexts)
                    calls.put(None)
                case Ping():
                    channel.send(Pong())
                case _ if isinstance(message, Call):
                    contexts = [
                        CallContext(message, device=device, send=channel.send, folder=channel.folder)
                    ]  # the host sends one call at a time
                    calls.put(contexts[0])
                case _:
                    print(f"unknown message {message!r}", file=sys.stderr)  # noqa: T201  # the lane's log
    except Exception:  # noqa: BLE001  # a lane that cannot hear its host must not go on
        traceback.print_exc()
    finally:
        _end()


def _cancel(contexts: Iterable[CallContext]) -> None:
    for context in contexts:
        context.cancel()


def _end() -> None:
    """End this process and what it has started, now: nobody is left to stop for."""
    if os.getpgrp() == os.getpid():
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
