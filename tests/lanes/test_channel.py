"""The wire between host and lane."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest

from wan_host.lanes import channel, memory_file
from wan_host.lanes.messages import Hello, Preview


def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return channel.BlockingChannel(ours), channel.BlockingChannel(theirs), ours, theirs


def test_small_and_large_messages_arrive_in_order():
    one, other, ours, theirs = pair()
    image = np.random.default_rng(1).integers(0, 255, (600, 700, 3), dtype=np.uint8)
    with ours, theirs:
        for message in (Hello(models=("a",)), Preview(call=1, image=image), Preview(call=2, image=image[:8, :8].copy())):
            one.send(message)
        ours.shutdown(socket.SHUT_WR)
        hello, large, small = other.messages()
    assert hello == Hello(models=("a",))
    assert np.array_equal(large.image, image)
    assert not large.image.flags.writeable
    assert np.array_equal(small.image, image[:8, :8])


def test_a_long_message_is_written_whole_through_a_narrow_socket():
    one, other, ours, theirs = pair()
    text = "x" * 3_000_000
    with ours, theirs:
        writer = threading.Thread(target=one.send, args=(Hello(models=(text,)),))
        writer.start()
        message = next(other.messages())
        writer.join()
    assert message.models == (text,)


def test_a_descriptor_that_must_be_kept_is_closed_on_demand(monkeypatch):
    monkeypatch.setattr(channel, "KEEP_SENT", True)
    one, other, ours, theirs = pair()
    with ours, theirs:
        one.send(Preview(call=1, image=np.zeros((400, 400, 3), np.uint8)))
        (kept,) = one._kept
        os.fstat(kept)
        assert next(other.messages()).image.shape == (400, 400, 3)
        one.close_sent()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_frames_in_pieces_of_any_size_are_put_together():
    frame, descriptor = channel.encode(Hello(models=("a", "b")), "")
    assert descriptor is None
    decoder = channel.Decoder()
    received = [message for i in range(len(frame)) for message in decoder.feed(frame[i : i + 1], [])]
    assert received == [Hello(models=("a", "b"))]


def test_the_descriptor_of_a_frame_that_never_came_is_closed():
    image = np.zeros((400, 400, 3), np.uint8)
    frame, descriptor = channel.encode(Preview(call=1, image=image), "")
    decoder = channel.Decoder()
    assert list(decoder.feed(frame[:20], [descriptor])) == []
    decoder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_memory_files_keep_every_part_apart(tmp_path):
    parts = [memoryview(bytes([i]) * size) for i, size in enumerate((1, 63, 64, 65, 4097))]
    fd = memory_file.write(parts, str(tmp_path))
    assert [bytes(view) for view in memory_file.read(fd, [part.nbytes for part in parts])] == [bytes(part) for part in parts]


def test_without_memfd_a_file_without_a_name_serves(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    fd = memory_file.write([memoryview(b"frames")], str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert bytes(memory_file.read(fd, [6])[0]) == b"frames"


def test_a_memory_file_that_is_too_short_is_refused(tmp_path):
    fd = memory_file.write([memoryview(b"frames")], str(tmp_path))
    with pytest.raises(ValueError, match="cannot hold"):
        memory_file.read(fd, [10_000])
