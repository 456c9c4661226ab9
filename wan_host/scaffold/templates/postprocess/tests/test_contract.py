"""The plugin keeps the contract of its hooks."""

from wan_host.testing.contract import PluginContract, PostprocessContract


class TestPlugin(PluginContract):
    plugin = "my_plugin"


class TestPostprocess(PostprocessContract):
    plugin = "my_plugin"
