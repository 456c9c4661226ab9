"""The plugin keeps the contract of its hooks."""

from wan_host.testing.contract import ModelContract, PluginContract


class TestPlugin(PluginContract):
    plugin = "tiny_wan"


class TestModel(ModelContract):
    plugin = "tiny_wan"
