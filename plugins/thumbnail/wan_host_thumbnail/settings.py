"""The plugin's settings: ``WAN_HOST_THUMBNAIL_*`` in the environment over the table ``[thumbnail]`` of ``wan-host.toml``."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from wan_host import SettingsError

_PREFIX = "WAN_HOST_THUMBNAIL_"


class ThumbnailSettings(BaseSettings):
    """What to make beside the thumbnail."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    animated: bool = False
    """``{i}.preview.webp``: the whole video, small, at most 500 kB."""
    sheet: bool = False
    """``{i}.sheet.webp``: nine frames of the video in a grid."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic-settings' own
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the plugin's table of the host's file."""
        file = Path(os.environ.get("WAN_HOST_CONFIG") or "wan-host.toml")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file, toml_table_header=("thumbnail",)))


@cache
def read_settings() -> ThumbnailSettings:
    """Read the settings once in a process. Raise SettingsError with one line that names what is wrong."""
    try:
        return ThumbnailSettings()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [f"{_PREFIX}{str(p['loc'][0]).upper()}: {p['input']!r} is not allowed; {p['msg']}" for p in problems]
        raise SettingsError("; ".join(lines)) from None
