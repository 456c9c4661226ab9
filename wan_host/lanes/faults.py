"""From the exception that a hook raised to the error that the host raises for it, across the process border.

Exceptions themselves never cross: unpickling one would import the plugin's module, and with it torch, into the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wan_host import errors

OUT_OF_MEMORY = "out_of_memory"
DEVICE_FAULT = "device_fault"
_MESSAGE_CHARACTERS = 2000
_OUT_OF_MEMORY_TEXTS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
_DEVICE_FAULT_TEXTS = ("CUDA error", "cuDNN error", "CUDA driver error", "CUDA failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An exception, described: the class name in ``wan_host.errors``, the message, and why the lane must restart, if it must."""

    error: str
    message: str
    restart: str = ""


def describe(error: BaseException, *, otherwise: type[errors.WanHostError], subject: str) -> Fault:
    """Describe what a hook raised. ``otherwise`` is the class of what is no WanHostError; ``subject`` begins its message."""
    links = list(chain(error))
    restart = ""
    if any(_is_out_of_memory(link) for link in links):
        restart = OUT_OF_MEMORY
    elif any(_is_device_fault(link) for link in links):
        restart = DEVICE_FAULT
    stopped = next((link for link in links if isinstance(link, errors.JobCancelled | errors.DeadlineExceeded)), None)
    known = stopped or error
    if isinstance(known, errors.WanHostError):
        return Fault(error=_public_name(known), message=str(known)[:_MESSAGE_CHARACTERS], restart=restart)
    kind = errors.OutOfMemory if restart == OUT_OF_MEMORY else otherwise
    text = f"{subject} raised {type(error).__name__}: {error}".rstrip(": ")
    return Fault(error=kind.__name__, message=text[:_MESSAGE_CHARACTERS], restart=restart)


def revive(fault_error: str, message: str) -> errors.WanHostError:
    """Return the error that a described fault stands for."""
    kind: type[errors.WanHostError] = getattr(errors, fault_error)
    return kind.from_message(message)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and what it was raised from or while handling, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's classes are known by name: this module must not import torch
    if isinstance(error, MemoryError | errors.OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def _is_device_fault(error: BaseException) -> bool:
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE_FAULT_TEXTS)


def _public_name(error: errors.WanHostError) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in errors.__all__:
            return kind.__name__
    return errors.WanHostError.__name__
