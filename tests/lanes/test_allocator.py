"""Memory figures without importing torch: a stand-in plays its part."""

from __future__ import annotations

import sys
import types

import pytest

from wan_host.lanes import allocator
from wan_host.lanes.messages import Memory


def fake_cuda(*, initialized=True, broken=False):
    calls = []

    def answer(value):
        def method(*_):
            if broken:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return value

        return method

    cuda = types.SimpleNamespace(
        is_initialized=lambda: initialized,
        memory_allocated=answer(3),
        memory_reserved=answer(5),
        max_memory_allocated=answer(7 * 2**20),
        get_device_properties=answer(types.SimpleNamespace(total_memory=11)),
        reset_peak_memory_stats=lambda device: calls.append(("reset", device)),
        empty_cache=lambda: answer(None)() or calls.append("empty"),
    )
    return types.SimpleNamespace(cuda=cuda), calls


def test_a_lane_without_torch_reads_zero_and_does_not_import_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for device in ("cpu", "cuda:0", "mps"):
        assert allocator.read_memory(device) == Memory()
        allocator.reset_peak(device)
        allocator.release(device)
    assert "torch" not in sys.modules


@pytest.mark.parametrize(("device", "initialized"), [("cpu", True), ("cuda:0", False)])
def test_a_device_that_torch_has_not_begun_to_use_is_left_alone(monkeypatch, device, initialized):
    torch, calls = fake_cuda(initialized=initialized)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert allocator.read_memory(device) == Memory()
    allocator.reset_peak(device)
    allocator.release(device)
    assert calls == []


def test_figures_come_from_the_allocator(monkeypatch):
    torch, calls = fake_cuda()
    monkeypatch.setitem(sys.modules, "torch", torch)
    memory = allocator.read_memory("cuda:0")
    assert memory == Memory(used=3, reserved=5, peak=7 * 2**20, total=11)
    assert memory.peak_mib == 7
    allocator.reset_peak("cuda:0")
    allocator.release("cuda:0")
    assert calls == [("reset", "cuda:0"), "empty"]


def test_a_faulted_device_does_not_hide_the_first_error(monkeypatch, capsys):
    torch, _ = fake_cuda(broken=True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert allocator.read_memory("cuda:0") == Memory()
    allocator.release("cuda:0")
    assert "empty_cache failed: CUDA error" in capsys.readouterr().err


def test_apples_gpu_has_figures_of_its_own(monkeypatch):
    mps = types.SimpleNamespace(
        current_allocated_memory=lambda: 2,
        driver_allocated_memory=lambda: 4,
        recommended_max_memory=lambda: 8,
        empty_cache=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(mps=mps))
    assert allocator.read_memory("mps") == Memory(used=2, reserved=4, peak=2, total=8)
    allocator.reset_peak("mps")
    allocator.release("mps")
