"""From exceptions of plugins to errors of the host."""

from __future__ import annotations

import pytest

from wan_host import errors
from wan_host.lanes.faults import DEVICE_FAULT, OUT_OF_MEMORY, describe, revive


def described(error):
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001  # any exception is the subject here
        return describe(raised, otherwise=errors.GenerationFailed, subject="generating")


@pytest.mark.parametrize(
    ("error", "kind", "restart"),
    [
        (ValueError("x"), "GenerationFailed", ""),
        (MemoryError(), "OutOfMemory", OUT_OF_MEMORY),
        (RuntimeError("MPS backend out of memory"), "OutOfMemory", OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "OutOfMemory", OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "OutOfMemory", OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered"), "GenerationFailed", DEVICE_FAULT),
        (type("AcceleratorError", (RuntimeError,), {})("launch failure"), "GenerationFailed", DEVICE_FAULT),
        (ValueError("a prompt about running out of memory"), "GenerationFailed", ""),
        (errors.OutOfMemory("the largest size that fits is 480x832"), "OutOfMemory", OUT_OF_MEMORY),
        (errors.UnsupportedRequest("no"), "UnsupportedRequest", ""),
    ],
)
def test_each_exception_has_its_class(error, kind, restart):
    fault = described(error)
    assert (fault.error, fault.restart) == (kind, restart)
    assert type(revive(fault.error, fault.message)).__name__ == kind


def test_a_fault_is_found_behind_what_was_raised_from_it():
    try:
        try:
            raise RuntimeError("CUDA error: unspecified launch failure")
        except RuntimeError as inner:
            raise errors.UnsupportedRequest("cannot") from inner
    except errors.UnsupportedRequest as outer:
        fault = described(outer)
    assert (fault.error, fault.message, fault.restart) == ("UnsupportedRequest", "cannot", DEVICE_FAULT)


def test_messages_are_bounded():
    assert len(described(ValueError("x" * 100_000)).message) == 2000
