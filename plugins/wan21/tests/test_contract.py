"""The plugin keeps the contract of its hooks, with a tiny checkpoint of the real classes."""

import pytest

from wan_host import JobDefaults, ModelInfo, wan_job_types
from wan_host.testing.contract import CommandContract, ModelContract, PluginContract, RunnerContract

DEFAULTS = JobDefaults(media="video", width=64, height=64, frames=5, fps=8)


class TestPlugin(PluginContract):
    plugin = "wan21"


class TestModels(ModelContract):
    plugin = "wan21"

    @pytest.fixture(autouse=True)
    def a_checkpoint_on_disk(self, tiny_folder, tmp_path, monkeypatch):
        (tmp_path / "wan2.1-vace-1.3b").symlink_to(tiny_folder("vace"))
        monkeypatch.setenv("WAN_HOST_WAN21_MODELS_DIR", str(tmp_path))


class TestRunner(RunnerContract):
    plugin = "wan21"

    @pytest.fixture(scope="class")
    @classmethod
    def model_info(cls, tiny_folder):
        types = wan_job_types(DEFAULTS, DEFAULTS, fast_steps=2, high_steps=4, fast_guidance=4.0, high_guidance=5.0)
        return ModelInfo(name="tiny", family="wan", runner="wan21", path=str(tiny_folder("t2v")), job_types=types)


class TestCommands(CommandContract):
    plugin = "wan21"
