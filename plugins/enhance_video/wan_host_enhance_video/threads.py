"""Pieces of work side by side. OpenCV itself gets one thread: its optical flow differs with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    from wan_host import LaneContext


def side_by_side(pieces: Sequence[Callable[[], None]], context: LaneContext) -> None:
    """Do every piece, one a core at a time, with a sign of life after each. What is raised ends the ones that have not begun."""
    with _one_thread_each(), ThreadPoolExecutor(_cores(), thread_name_prefix="enhance-video") as threads:
        running = [threads.submit(piece) for piece in pieces]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                context.progress(f"{done} of {len(pieces)}")
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
