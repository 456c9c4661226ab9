"""The socket between host and lane: pickled messages with a length, and large arrays beside them in a memory file.

A frame is a header, the size of each out-of-band part, and the pickle. Where there are parts, the descriptor of the memory file
that holds them travels with the frame's first byte (SCM_RIGHTS), so it is there before the frame is complete.
Both ends belong to the same user and program: unpickling grants the lane nothing that its plugins could not do anyway.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator

from wan_host.lanes import memory_file

OUT_OF_BAND_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
_HEADER = struct.Struct(">II")
_SIZE = struct.Struct(">Q")
_MAX_DESCRIPTORS = 16
KEEP_SENT = sys.platform == "darwin"
"""Whether a descriptor that is on its way must stay open here until the other side has it (CPython issue 14669)."""
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def encode(message: object, folder: str, descriptor: int | None = None) -> tuple[bytes, int | None]:
    """Return the frame of ``message`` and the descriptor to pass with it, which the caller closes.

    ``descriptor``: of a memory file that holds the message's one array already; it is duplicated, and nothing is copied. Raises
    whatever pickle raises for what cannot be pickled, and OSError where there is no room for the memory file.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    if descriptor is None and sum(part.nbytes for part in parts) < OUT_OF_BAND_BYTES:
        body = pickle.dumps(message, protocol=5)
        return _HEADER.pack(len(body), 0) + body, None
    frame = _HEADER.pack(len(body), len(parts)) + b"".join(_SIZE.pack(part.nbytes) for part in parts) + body
    return frame, memory_file.write(parts, folder) if descriptor is None else os.dup(descriptor)


class Decoder:
    """Turns what arrives, in pieces of any size, into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: list[int]) -> Iterator[object]:
        """Take what was received and yield the messages that are now complete; their large arrays are read-only."""
        self._bytes += data
        self._descriptors.extend(descriptors)
        while len(self._bytes) >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._bytes)
            start = _HEADER.size + count * _SIZE.size
            if len(self._bytes) < start + length:
                return
            sizes = [_SIZE.unpack_from(self._bytes, _HEADER.size + i * _SIZE.size)[0] for i in range(count)]
            body = bytes(self._bytes[start : start + length])
            del self._bytes[: start + length]
            parts = memory_file.read(self._descriptors.popleft(), sizes) if count else []
            yield pickle.loads(body, buffers=parts)  # noqa: S301  # from our own child or parent, see above

    def close(self) -> None:
        """Close the descriptors of frames that never became complete."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Read once; empty bytes mean that the other side has closed. Raises BlockingIOError and OSError as sockets do."""
    data, descriptors, _, _ = socket.recv_fds(sock, READ_BYTES, _MAX_DESCRIPTORS, _CLOSE_ON_EXEC)
    return data, descriptors


def send_some(sock: socket.socket, frame: memoryview, descriptor: int | None) -> int:
    """Write what the socket takes, the descriptor with the first byte; return how many bytes that was."""
    if descriptor is None:
        return sock.send(frame)
    return socket.send_fds(sock, [frame], [descriptor])


class BlockingChannel:
    """The lane's end: one thread reads, any thread writes."""

    def __init__(self, sock: socket.socket) -> None:
        self.folder = ""
        self._socket = sock
        self._decoder = Decoder()
        self._writing = threading.Lock()
        self._kept: list[int] = []

    def send(self, message: object, descriptor: int | None = None) -> None:
        """Write one message whole; ``descriptor`` as in ``encode``, whose errors it raises, and OSError when the host is gone."""
        frame, passed = encode(message, self.folder, descriptor)
        try:
            with self._writing:
                rest = memoryview(frame)
                rest = rest[send_some(self._socket, rest, passed) :]
                while rest:
                    rest = rest[self._socket.send(rest) :]
        finally:
            if passed is not None:
                self._kept.append(passed)
            if not KEEP_SENT:
                self.close_sent()

    def close_sent(self) -> None:
        """Close what was sent: the other side has answered, or it needs no such proof."""
        while self._kept:
            os.close(self._kept.pop())

    def messages(self) -> Iterator[object]:
        """Yield messages until the host closes its end or dies."""
        while True:
            try:
                data, descriptors = receive(self._socket)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._decoder.feed(data, descriptors)
