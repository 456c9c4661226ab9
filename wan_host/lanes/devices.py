"""Which devices this machine has, without torch: NVIDIA through its management library, else Apple's GPU, else the CPU.

``cuda:N`` counts the visible GPUs in the order of the PCI bus. A lane is given its GPU by UUID and sees no other, so the
number means the same whatever order CUDA would choose.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_host.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device: ``name`` as settings and metrics have it, ``label`` as people know it, ``memory`` in bytes (0: unknown)."""

    name: str
    label: str
    memory: int
    uuid: str = ""

    @property
    def local_name(self) -> str:
        """The device as torch names it inside its lane."""
        return "cuda:0" if self.uuid else self.name

    def environment(self) -> dict[str, str]:
        """Return the variables of a lane on this device.

        A GPU is the only one that its lane can see. On the CPU, OpenMP's threads sleep while they wait: spinning, two lanes (or
        a lane and anything else) on the same cores slow each other down more than tenfold.
        """
        if self.uuid:
            return {"CUDA_VISIBLE_DEVICES": self.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")} if self.name == "cpu" else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The machine's devices, GPUs first and the CPU last; ``problem`` says why a driver that is there could not be asked."""

    devices: tuple[Device, ...]
    problem: str = ""

    def find(self, name: str) -> Device:
        """Return the device of that name. Raises SettingsError that names what there is."""
        for device in self.devices:
            if device.name == name:
                return device
        there = ", ".join(f"{device.name} ({device.label})" for device in self.devices)
        problem = f"; {self.problem}" if self.problem else ""
        raise SettingsError(f"devices: {name!r} is not on this machine, which has {there}{problem}")

    def choose(self, setting: str) -> tuple[Device, ...]:
        """Return what ``all`` or a comma-separated list of names means. Raises SettingsError.

        ``all`` is every GPU, and the CPU only where there is no GPU.
        """
        if setting.strip() == "all":
            return self.devices[:-1] or self.devices
        names = [name.strip() for name in setting.split(",")]
        if len(set(names)) != len(names):
            raise SettingsError(f"devices: {setting!r} names a device twice")
        return tuple(self.find(name) for name in names)


def list_devices(environment: Mapping[str, str] = os.environ) -> Inventory:
    """Ask the machine. CUDA_VISIBLE_DEVICES in ``environment`` hides GPUs as it does for CUDA."""
    gpus, problem = _nvidia(environment.get("CUDA_VISIBLE_DEVICES"))
    if not gpus and sys.platform == "darwin" and platform.machine() == "arm64":
        gpus = [Device(name="mps", label=_processor(), memory=_main_memory())]
    cpu = Device(name="cpu", label=_processor(), memory=_main_memory())
    return Inventory(devices=(*gpus, cpu), problem=problem)


def _nvidia(visible: str | None) -> tuple[list[Device], str]:
    try:
        import pynvml
    except ImportError:
        return [], ""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = getattr(error, "value", None) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
        return [], "" if absent else f"the NVIDIA driver does not answer: {error}"
    try:
        found = [_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer: {error}"
    finally:
        pynvml.nvmlShutdown()
    chosen = _visible(found, visible)
    return [Device(name=f"cuda:{i}", label=label, memory=memory, uuid=uuid) for i, (uuid, label, memory) in enumerate(chosen)], ""


def _gpu(nvml: Any, handle: Any) -> tuple[str, str, int]:
    return (
        _text(nvml.nvmlDeviceGetUUID(handle)),
        _text(nvml.nvmlDeviceGetName(handle)),
        nvml.nvmlDeviceGetMemoryInfo(handle).total,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # releases of the binding differ


def _visible(found: list[tuple[str, str, int]], visible: str | None) -> list[tuple[str, str, int]]:
    if visible is None:
        return found
    chosen = []
    for entry in visible.split(","):
        name = entry.strip()
        if name.isdigit():
            matches = found[int(name) : int(name) + 1]
        elif name.startswith("MIG-") and found:
            matches = [(name, f"{found[0][1]} (MIG)", 0)]
        else:
            matches = [gpu for gpu in found if name and gpu[0].startswith(name)]
        if len(matches) != 1:
            break  # CUDA itself ignores everything from the first invalid entry on
        chosen += matches
    return chosen


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _main_memory() -> int:
    total = 0
    with suppress(OSError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # a container's own limit; the file says "max" where there is none
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total
