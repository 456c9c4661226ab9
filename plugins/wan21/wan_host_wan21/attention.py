"""Which attention kernel is fastest here: measured once for each GPU, driver, torch, model and length, and written down.

diffusers' own ``set_attention_backend`` also changes the whole process's default, for every other model
(modeling_utils.py:668); here the processors of one model are set, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  # this module is imported with a loaded model
from diffusers.models.attention_dispatch import (  # noqa: TID253  # as above
    AttentionBackendName,
    dispatch_attention_fn,
)

if TYPE_CHECKING:
    from pathlib import Path

NATIVE = "native"
CANDIDATES = (NATIVE, "_native_cudnn", "_native_flash", "flash", "_flash_3")
"""Kernels that compute attention as it is defined; those that round it (SageAttention) are left out."""
_ROUNDS = 5
_TOLERANCE = 0.02
"""Relative error against the default that bfloat16 explains; what is beyond is not attention."""
_log = logging.getLogger("wan_host_wan21")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Self-attention of one pass."""

    heads: int
    tokens: int
    width: int
    """Of one head."""
    dtype: str


class Choices:
    """The measured choices of this machine, in a JSON file that workers share."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """``path`` need not be there."""
        self._path, self._device = path, device
        self._known: dict[str, dict[str, Any]] = {}

    def fastest(self, shape: Shape) -> str:
        """Return the backend for a shape, measured at its first use; the default where there is nothing to choose from."""
        if self._device.type != "cuda":
            return NATIVE
        key = f"{_machine(self._device)} {shape.heads}x{shape.tokens}x{shape.width} {shape.dtype}"
        if key not in self._known:
            self._known |= _read(self._path)
        if key not in self._known:
            milliseconds = measure(shape, self._device)
            backend = min(milliseconds, key=lambda name: milliseconds[name])
            self._known[key] = {"backend": backend, "milliseconds": milliseconds}
            _write(self._path, _read(self._path) | self._known)
        return str(self._known[key]["backend"])


def measure(shape: Shape, device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of each backend that runs here and gives what the default gives."""
    source = torch.Generator(device).manual_seed(0)
    size = (3, 1, shape.tokens, shape.heads, shape.width)
    query, key, value = torch.randn(size, generator=source, device=device, dtype=getattr(torch, shape.dtype))
    found: dict[str, float] = {}
    expected = None
    for name in CANDIDATES:
        backend = AttentionBackendName(name)
        try:
            made = dispatch_attention_fn(query, key, value, backend=backend).float()
            if expected is None:
                expected = made
            error = float((made - expected).norm() / expected.norm())
            if error > _TOLERANCE:
                _log.warning("attention backend %s is off by %.1e and is not used", name, error)
                continue
            found[name] = statistics.median(_milliseconds(query, key, value, backend) for _ in range(_ROUNDS))
        except (RuntimeError, ImportError, ValueError, TypeError, AssertionError) as error:
            if name == NATIVE:
                raise
            _log.info("attention backend %s does not run here: %s", name, error)
    return found


def use(transformer: Any, backend: str) -> None:
    """Have every attention of a model run ``backend``; the default again with `NATIVE`."""
    chosen = None if backend == NATIVE else AttentionBackendName(backend)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = chosen  # noqa: SLF001  # what set_attention_backend sets, without its global


def _milliseconds(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    dispatch_attention_fn(query, key, value, backend=backend)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _machine(device: torch.device) -> str:
    import diffusers
    import pynvml

    pynvml.nvmlInit()
    driver = pynvml.nvmlSystemGetDriverVersion()
    name = torch.cuda.get_device_name(device)
    return f"{name}, driver {driver}, torch {torch.__version__}, diffusers {diffusers.__version__}:"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, choices: dict[str, dict[str, Any]]) -> None:
    """Replace the file whole: several workers may write at once, and what one of them loses is measured again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        json.dump(choices, file, indent=1)
    os.replace(file.name, path)  # noqa: PTH105  # a string from tempfile
