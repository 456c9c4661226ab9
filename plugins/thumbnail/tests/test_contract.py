"""The plugin keeps the contract of its hooks."""

from wan_host.testing.contract import PluginContract, PostprocessContract


class TestPlugin(PluginContract):
    plugin = "thumbnail"


class TestPostprocess(PostprocessContract):
    plugin = "thumbnail"
