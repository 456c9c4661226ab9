"""What goes on while Python imports what a model needs: a GPU's libraries start in a thread, and no garbage is looked for."""

from __future__ import annotations

import gc
import importlib
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside: of 6.4 s of processor time, 1.0 went into searching a million new objects, all of them in use."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def imported_meanwhile(name: str, *, wanted: bool) -> Iterator[None]:
    """Import a module in a thread while what is inside reads weights, and wait for it at the end.

    Inside nothing may be imported that it imports, too: two imports would find each other half done. An import that fails is
    left for whoever needs the module.
    """
    if not wanted:
        yield
        return

    def bring() -> None:
        with suppress(Exception), uncollected():
            importlib.import_module(name)

    thread = threading.Thread(target=bring, name="import", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def wake(device: str) -> None:
    """Begin to make a GPU ready to compute, in a thread; nothing for other devices. It imports torch, if nobody has.

    What goes wrong there is left for the loading to complain about.
    """
    import torch

    chosen = torch.device(device)
    if chosen.type == "cuda":
        grow_segments()  # before the first allocation
        threading.Thread(target=_use, args=(chosen,), name="wake", daemon=True).start()


def grow_segments() -> None:
    """Let CUDA's allocator grow its segments rather than add others: phases of different sizes then share them.

    What the environment says goes before.
    """
    import torch

    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")  # noqa: SLF001  # the variable is read only once


def _use(device: torch.device) -> None:
    """Make the context, and have cuBLAS, cuDNN and attention load what they need to begin. Imports nothing.

    An import here could wait for one under way elsewhere, and that one for CUDA.
    """
    import torch

    # Without CUDA torch asserts, and what CUDA complains of late is a plain Exception (DeferredCudaCallError).
    with suppress(Exception), torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32):
            grid = torch.zeros(1, 16, 4, 16, 16, dtype=dtype, device=device)
            torch.nn.functional.conv3d(grid, torch.zeros(16, 16, 3, 3, 3, dtype=dtype, device=device), padding=1)
        rows = torch.zeros(1, 2, 64, 128, dtype=torch.bfloat16, device=device)
        torch.nn.functional.scaled_dot_product_attention(rows @ rows.mT @ rows, rows, rows)
        torch.cuda.synchronize(device)
