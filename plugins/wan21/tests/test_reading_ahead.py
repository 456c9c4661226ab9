"""A checkpoint's files come into the page cache before anything that loads them is imported."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from wan_host_wan21.reading_ahead import read_ahead


def pages_of(path):
    """Return which pages are cached: asking with RWF_NOWAIT would itself begin to read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        begin = np.frombuffer(mapped, np.uint8).ctypes.data
        size = ctypes.c_size_t(len(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), size, ctypes.c_void_p(pages.ctypes.data)) == 0
    return (pages & 1).astype(bool)


def cached(path):
    """Return the share of pages that are cached."""
    return pages_of(path).mean()


def wait():
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(10)


def counted(name):
    """Return what the system has counted of this process: ``read_bytes`` from the storage, ``rchar`` by calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(value) for key, value in (line.split(": ") for line in lines) if key == name)


@pytest.fixture
def checkpoint(tmp_path):
    """Return a folder with a file of 40 MB, none of it in the page cache."""
    path = tmp_path / "transformer" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(os.urandom(40_000_000))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == 0
    return tmp_path


def test_every_byte_is_fetched_from_the_storage(checkpoint):
    # What the cache holds afterwards is the system's affair: some take clean pages back at any moment.
    before = counted("read_bytes")
    read_ahead(checkpoint)
    wait()
    assert counted("read_bytes") - before >= 40_000_000


def test_what_is_in_the_page_cache_is_passed_by(checkpoint):
    path = checkpoint / "transformer" / "weights.safetensors"
    path.read_bytes()
    pages, piece = pages_of(path), 8 * 2**20 // mmap.PAGESIZE
    left = sum(not pages[begin : begin + piece].all() for begin in range(0, len(pages), piece))
    if left * 8 * 2**20 >= 40_000_000:
        pytest.skip("the system has taken every piece back")
    before = counted("rchar")
    read_ahead(checkpoint)
    wait()
    assert counted("rchar") - before < left * 8 * 2**20 + 1_000_000


def test_a_piece_whose_beginning_alone_is_cached_is_read(checkpoint):
    path = checkpoint / "transformer" / "weights.safetensors"
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # this file's reading does not go beyond what is asked
        for begin in range(0, 40_000_000, 8 * 2**20):
            os.pread(file.fileno(), 1, begin)
    assert 0 < cached(path) < 0.1
    before = counted("read_bytes")
    read_ahead(checkpoint)
    wait()
    assert counted("read_bytes") - before >= 0.9 * 40_000_000


def test_a_folder_that_is_not_there_is_left_for_the_loading_to_name(tmp_path):
    read_ahead(tmp_path / "nowhere")


def test_a_link_to_a_file_that_is_gone_is_left_for_the_loading_to_name(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").symlink_to(tmp_path / "gone")
    read_ahead(tmp_path)


def test_torch_is_not_needed():
    code = "import sys, wan_host_wan21.reading_ahead; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
