"""The settings: ``WAN_HOST_MY_PLUGIN_*`` in the environment, or the table ``[my_plugin]`` of ``wan-host.toml``."""

from __future__ import annotations

from pathlib import Path

from wan_host import PluginSettings


class Settings(PluginSettings, env_prefix="WAN_HOST_MY_PLUGIN_"):
    """Where files go, and the address under which that is served."""

    folder: Path | None = None
    url: str = ""
