"""The plugin keeps the contract of its hooks."""

import pytest

from wan_host.testing.contract import PluginContract, PublisherContract


class TestPlugin(PluginContract):
    plugin = "my_plugin"


class TestPublisher(PublisherContract):
    plugin = "my_plugin"

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        self.store = tmp_path / "store"
        monkeypatch.setenv("WAN_HOST_MY_PLUGIN_FOLDER", str(self.store))

    def published(self, url):
        return (self.store / url).read_bytes()
