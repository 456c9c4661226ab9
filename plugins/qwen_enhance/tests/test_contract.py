"""The plugin keeps the contract of its hooks, with a tiny model of random weights."""

import pytest

from wan_host import ModelInfo
from wan_host.testing.contract import EnhancerContract, ModelContract, PluginContract


class TestPlugin(PluginContract):
    plugin = "qwen_enhance"


class TestModel(ModelContract):
    plugin = "qwen_enhance"

    @pytest.fixture(autouse=True)
    def a_model_on_disk(self, tiny, monkeypatch):
        monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))


class TestEnhancer(EnhancerContract):
    plugin = "qwen_enhance"

    @pytest.fixture(scope="class")
    @classmethod
    def model_info(cls, tiny):
        return ModelInfo(name="tiny", family="qwen", runner="qwen_enhance", kind="enhance", path=str(tiny("instruct")))
