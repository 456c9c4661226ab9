"""A checkpoint's files come into the page cache before anything that loads them is imported."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading

import numpy as np
from wan_host_wan21.reading_ahead import read_ahead


def cached(path):
    """Return the share of pages that are cached: asking with RWF_NOWAIT would itself begin to read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        begin = np.frombuffer(mapped, np.uint8).ctypes.data
        size = ctypes.c_size_t(len(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), size, ctypes.c_void_p(pages.ctypes.data)) == 0
    return (pages & 1).mean()


def wait():
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(10)


def test_files_are_read_into_the_page_cache(tmp_path):
    path = tmp_path / "transformer" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(os.urandom(40_000_000))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == 0
    read_ahead(tmp_path)
    wait()
    assert cached(path) == 1


def test_a_folder_that_is_not_there_is_left_for_the_loading_to_name(tmp_path):
    read_ahead(tmp_path / "nowhere")


def test_a_link_to_a_file_that_is_gone_is_left_for_the_loading_to_name(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").symlink_to(tmp_path / "gone")
    read_ahead(tmp_path)


def test_torch_is_not_needed():
    code = "import sys, wan_host_wan21.reading_ahead; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
