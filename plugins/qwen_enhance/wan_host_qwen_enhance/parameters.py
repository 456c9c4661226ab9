"""How many parameters a file of weights holds, read from its header alone: sizes are asked for in every process at its start.

GGUF is walked here because the package ``gguf`` takes seconds for it: it makes an array of every word of the vocabulary.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the values of each type of metadata."""
_STRING, _ARRAY = 8, 9
_GGUF_VERSIONS = frozenset({2, 3})


def parameters(file: Path) -> int:
    """Count the elements of all tensors in a safetensors or GGUF file; 0 where it is none or damaged."""
    try:
        with file.open("rb") as opened:
            if file.suffix != ".gguf":
                return _in_safetensors(json.loads(opened.read(int.from_bytes(opened.read(8), "little"))))
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _in_gguf(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError, struct.error):
        return 0  # loading says what is wrong with the file


def _in_safetensors(header: dict[str, dict[str, list[int]]]) -> int:
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _in_gguf(data: mmap.mmap) -> int:
    magic, version, tensors, entries = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in _GGUF_VERSIONS:
        raise ValueError("no GGUF file that is known")
    place = struct.calcsize("<4sIQQ")
    for _ in range(entries):
        place = _after_string(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        place = _after_value(data, place + 4, kind)
    total = 0
    for _ in range(tensors):
        place = _after_string(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        total += math.prod(struct.unpack_from(f"<{dimensions}Q", data, place + 4))
        place += 4 + 8 * dimensions + 4 + 8  # the tensor's type and offset follow
    return total


def _after_string(data: mmap.mmap, place: int) -> int:
    return place + 8 + int(struct.unpack_from("<Q", data, place)[0])


def _after_value(data: mmap.mmap, place: int, kind: int) -> int:
    if kind == _STRING:
        return _after_string(data, place)
    if kind != _ARRAY:
        return place + _SCALARS[kind]
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner in _SCALARS:
        return place + _SCALARS[inner] * int(count)
    for _ in range(count):
        place = _after_value(data, place, inner)
    return place
