"""What the pool lends to its lanes."""

from __future__ import annotations

from wan_host.lane_pool import _vram_limits
from wan_host.lanes.devices import Device
from wan_host.settings import load_settings

CPU = Device(name="cpu", label="a CPU", memory=64 << 30)
GPU = Device(name="cuda:0", label="a GPU", memory=24 << 30, uuid="GPU-1")


def test_a_gpus_memory_is_the_limit_unless_the_setting_is_lower(monkeypatch):
    assert _vram_limits([GPU, CPU], load_settings()) == {"cuda:0": 24 << 10}
    monkeypatch.setenv("WAN_HOST_VRAM_LIMIT_GB", "16")
    assert _vram_limits([GPU, CPU], load_settings()) == {"cuda:0": 16 << 10, "cpu": 16 << 10}
    monkeypatch.setenv("WAN_HOST_VRAM_LIMIT_GB", "40")
    assert _vram_limits([GPU], load_settings()) == {"cuda:0": 24 << 10}
