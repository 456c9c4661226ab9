"""The settings: ``WAN_HOST_MY_PLUGIN_*`` in the environment, or the table ``[my_plugin]`` of ``wan-host.toml``."""

from __future__ import annotations

from wan_host import PluginSettings


class Settings(PluginSettings, env_prefix="WAN_HOST_MY_PLUGIN_"):
    """Where the weights are: a folder in the layout of diffusers, or a pinned id of the hub (``owner/name@revision``)."""

    path: str = "/models/my-plugin"
