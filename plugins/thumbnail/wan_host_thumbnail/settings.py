"""The plugin's settings: ``WAN_HOST_THUMBNAIL_*`` in the environment over the table ``[thumbnail]`` of ``wan-host.toml``."""

from __future__ import annotations

from functools import cache

from wan_host import PluginSettings


class ThumbnailSettings(PluginSettings, env_prefix="WAN_HOST_THUMBNAIL_"):
    """What to make beside the thumbnail."""

    animated: bool = False
    """``{i}.preview.webp``: the whole video, small, at most 500 kB."""
    sheet: bool = False
    """``{i}.sheet.webp``: nine frames of the video in a grid."""


@cache
def read_settings() -> ThumbnailSettings:
    """Read the settings once in a process. Raise SettingsError with one line that names what is wrong."""
    return ThumbnailSettings.read()
