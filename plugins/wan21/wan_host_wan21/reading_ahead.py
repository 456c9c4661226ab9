"""Read a checkpoint's files into the page cache while Python still imports what will load them. Imports nothing heavy."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIECE_BYTES = 8 * 2**20
_THREADS = 4


def read_ahead(folder: Path) -> None:
    """Begin to read the safetensors files of a checkpoint's parts in threads; pieces that are cached already are passed by.

    Nothing is begun where the files would not fit in the memory, or where the system cannot say what is cached. What cannot be
    read is left for the loading to complain about.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return
    try:
        sizes = {path: path.stat().st_size for path in sorted(folder.glob("*/*.safetensors"))}
    except OSError:
        return
    if sum(sizes.values()) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return
    pieces = iter([(path, begin) for path, size in sizes.items() for begin in range(0, size, _PIECE_BYTES)])
    for _ in range(_THREADS):
        threading.Thread(target=_read, args=(pieces,), name="read-ahead", daemon=True).start()


def _read(pieces: Iterator[tuple[Path, int]]) -> None:
    room = bytearray(_PIECE_BYTES)
    for path, begin in pieces:
        try:
            with path.open("rb", buffering=0) as file:
                end = min(begin + _PIECE_BYTES, os.fstat(file.fileno()).st_size)
                # Of its beginning alone the answer is often yes by accident: the system reads on past the piece before.
                if not (_cached(file.fileno(), end - 1) and _cached(file.fileno(), begin)):
                    os.preadv(file.fileno(), [room], begin)
        except OSError:
            return


def _cached(file: int, place: int) -> bool:
    """Whether a byte of a file is in the page cache."""
    try:
        os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
