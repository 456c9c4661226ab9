"""Memory files: how large arrays pass between host and lane without going through the socket.

The sender writes the arrays into an anonymous file and passes its descriptor; the receiver maps it. No name is left in any
folder, so nothing is left behind when either side is killed, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ALIGNMENT = 64


def create(folder: str) -> int:
    """Return the descriptor of a new anonymous file: a memfd, or where there is none a file in ``folder``, unlinked at once."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # some sandboxes have the call and refuse it
            return os.memfd_create("wan-host-frames", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix="wan-host-frames-", dir=folder or None)
    Path(path).unlink()
    return fd


def offsets(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins, in bytes, and last the length of the file."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return starts


def write(parts: Sequence[memoryview], folder: str) -> int:
    """Return the descriptor of a file that holds ``parts`` (bytes, contiguous). Raises OSError where there is no room."""
    fd = create(folder)
    try:
        starts = offsets([part.nbytes for part in parts])
        os.ftruncate(fd, starts[-1])
        for start, part in zip(starts, parts, strict=False):
            done = 0
            while done < part.nbytes:
                done += os.pwrite(fd, part[done:], start + done)
    except BaseException:
        os.close(fd)
        raise
    return fd


def reserve(size: int, folder: str) -> tuple[int, mmap.mmap]:
    """Return the descriptor of a file of ``size`` bytes, all 0, and its writable map. Raises OSError where there is no room."""
    fd = create(folder)
    try:
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error here, and no SIGBUS at the first write
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        return fd, mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except BaseException:
        os.close(fd)
        raise


def read(fd: int, sizes: Sequence[int]) -> list[memoryview]:
    """Return read-only views of the parts, mapped without a copy, and close ``fd``. The file lives as long as the views."""
    starts = offsets(sizes)
    try:
        if os.fstat(fd).st_size < starts[-1]:
            raise ValueError(f"a memory file of {os.fstat(fd).st_size} bytes cannot hold {starts[-1]}")
        view = memoryview(mmap.mmap(fd, starts[-1], flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    finally:
        os.close(fd)
    return [view[start : start + size] for start, size in zip(starts, sizes, strict=False)]
