"""The plugin keeps the contract of its hooks."""

from wan_host.testing.contract import ModelContract, PluginContract


class TestPlugin(PluginContract):
    plugin = "my_plugin"


class TestModel(ModelContract):
    plugin = "my_plugin"
