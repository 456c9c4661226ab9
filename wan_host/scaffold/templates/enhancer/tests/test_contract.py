"""The plugin keeps the contract of its hooks."""

from wan_host.testing.contract import EnhancerContract, ModelContract, PluginContract


class TestPlugin(PluginContract):
    plugin = "my_plugin"


class TestModel(ModelContract):
    plugin = "my_plugin"


class TestEnhancer(EnhancerContract):
    plugin = "my_plugin"
