"""The memory of the lane's device, read from torch where a plugin has imported it; the lane itself never does."""

from __future__ import annotations

import gc
import sys
from typing import Any

from wan_host.lanes.messages import Memory


def _torch(device: str) -> Any:
    """Torch if it is there already and has begun to use ``device``, else None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if device.startswith("cuda"):
        return torch if torch.cuda.is_initialized() else None
    return torch if device == "mps" else None


def read_memory(device: str) -> Memory:
    """Return the allocator's figures; all 0 on a CPU, before the first use, and where the device no longer answers."""
    torch = _torch(device)
    if torch is None:
        return Memory()
    try:
        if device == "mps":  # keeps no peak: the figure is the one of this moment
            used = torch.mps.current_allocated_memory()
            total = torch.mps.recommended_max_memory()
            return Memory(used=used, reserved=torch.mps.driver_allocated_memory(), peak=used, total=total)
        return Memory(
            used=torch.cuda.memory_allocated(device),
            reserved=torch.cuda.memory_reserved(device),
            peak=torch.cuda.max_memory_allocated(device),
            total=torch.cuda.get_device_properties(device).total_memory,
        )
    except RuntimeError:  # a faulted device refuses every call; the fault itself has been reported
        return Memory()


def reset_peak(device: str) -> None:
    """Begin a new peak."""
    torch = _torch(device)
    if torch is not None and device != "mps":
        torch.cuda.reset_peak_memory_stats(device)


def release(device: str) -> None:
    """Collect garbage and give cached memory back to the device."""
    gc.collect()
    torch = _torch(device)
    if torch is None:
        return
    try:
        (torch.mps if device == "mps" else torch.cuda).empty_cache()
    except RuntimeError as error:
        print(f"empty_cache failed: {error}", file=sys.stderr)  # noqa: T201  # standard error is the lane's log
