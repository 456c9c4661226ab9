"""Which devices there are, and what the setting means."""

from __future__ import annotations

import sys
import types

import pytest

from wan_host.errors import SettingsError
from wan_host.lanes import devices
from wan_host.lanes.devices import list_devices


def fake_nvml(*names, fault=None):
    class NVMLError(Exception):
        value = fault

    def init():
        if fault is not None:
            raise NVMLError("Driver/library version mismatch")

    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_ERROR_LIBRARY_NOT_FOUND = 12
    module.nvmlInit = init
    module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: len(names)
    module.nvmlDeviceGetHandleByIndex = lambda i: i
    module.nvmlDeviceGetUUID = lambda i: f"GPU-{i:04}-uuid"
    module.nvmlDeviceGetName = lambda i: names[i].encode() if i else names[i]
    module.nvmlDeviceGetMemoryInfo = lambda i: types.SimpleNamespace(total=(i + 1) * 2**30)
    return module


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml("H100", "A10"))


@pytest.mark.usefixtures("two_gpus")
def test_gpus_come_first_and_all_means_them():
    inventory = list_devices({})
    assert [(device.name, device.label) for device in inventory.devices[:-1]] == [("cuda:0", "H100"), ("cuda:1", "A10")]
    assert inventory.devices[-1].name == "cpu"
    assert inventory.devices[-1].memory > 2**28
    assert [device.name for device in inventory.choose("all")] == ["cuda:0", "cuda:1"]
    assert [device.name for device in inventory.choose(" cpu ")] == ["cpu"]
    assert [device.name for device in inventory.choose("cuda:1, cuda:0")] == ["cuda:1", "cuda:0"]


@pytest.mark.usefixtures("two_gpus")
def test_a_lane_sees_its_own_gpu_alone():
    device = list_devices({}).find("cuda:1")
    assert device.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-0001-uuid"
    assert device.local_name == "cuda:0"
    assert list_devices({}).find("cpu").local_name == "cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("visible", "labels"),
    [
        ("1", ["A10"]),
        ("1,0", ["A10", "H100"]),
        ("GPU-0001", ["A10"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["H100"]),
        ("GPU-9", []),
        ("MIG-abc", ["H100 (MIG)"]),
    ],
)
def test_hidden_gpus_stay_hidden(visible, labels):
    assert [device.label for device in list_devices({"CUDA_VISIBLE_DEVICES": visible}).devices[:-1]] == labels


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("setting", ["cuda:2", "gpu", "", "cuda:0,cpu2", "cuda:0,cuda:0"])
def test_an_unknown_device_is_refused_by_name(setting):
    with pytest.raises(SettingsError, match=r"devices: .*(which has cuda:0 \(H100\), cuda:1 \(A10\), cpu|twice)"):
        list_devices({}).choose(setting)


def test_without_a_driver_the_cpu_remains(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(fault=12))
    inventory = list_devices({})
    assert (len(inventory.devices), inventory.problem) == (1, "")
    assert [device.name for device in inventory.choose("all")] == ["cpu"]


def test_a_driver_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(fault=18))
    inventory = list_devices({})
    assert "does not answer: Driver/library version mismatch" in inventory.problem
    with pytest.raises(SettingsError, match="version mismatch"):
        inventory.choose("cuda:0")


def test_apple_silicon_has_one_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    inventory = list_devices({})
    assert [device.name for device in inventory.devices] == ["mps", "cpu"]
    assert inventory.find("mps").local_name == "mps"


def test_a_lane_on_the_cpu_waits_without_spinning_unless_told_otherwise(monkeypatch):
    cpu = list_devices({}).find("cpu")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert cpu.environment() == {"OMP_WAIT_POLICY": "passive"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert cpu.environment() == {"OMP_WAIT_POLICY": "active"}
