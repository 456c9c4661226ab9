"""The base of plugins' settings: the same rules as the host's, under the plugin's own name."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from wan_host.errors import SettingsError, shown

SETTINGS_FILE = "wan-host.toml"
_SECRET_WORDS = frozenset({"secret", "token", "key", "password"})


def expanded(path: Path) -> Path:
    """Return ``path`` below the home folder that it begins with, if any. Raise ValueError where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(error) from error


class PluginSettings(BaseSettings):
    """Settings of a plugin: ``WAN_HOST_<PLUGIN>_*`` in the environment over the table ``[<plugin>]`` of the host's file.

    Subclass it with the prefix and fields, and call ``read``::

        class ThumbnailSettings(PluginSettings, env_prefix="WAN_HOST_THUMBNAIL_"):
            sheet: bool = False

    Fields with a ``validation_alias`` are read under that name too, also from the file's top level: that is how a plugin
    shares a setting of the host. Values that are empty count as not set.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic-settings' own
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment, then the plugin's table, then what it shares of the file's top level."""
        file = read_settings_file()
        name = cls._prefix().removeprefix("WAN_HOST_").rstrip("_").lower()
        table = file.get(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{SETTINGS_FILE}: {name}: {shown(table)} is not allowed; it must be a table")
        top = {name: value for name, value in file.items() if not isinstance(value, dict) and _is_alias(settings_cls, name)}
        sources = (InitSettingsSource(settings_cls, table), InitSettingsSource(settings_cls, top))
        return (init_settings, env_settings, *sources)

    @classmethod
    def read(cls) -> Self:
        """Read the settings. Raises SettingsError, one line that names the variable, the value and what is allowed."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("; ".join(cls._problem(item) for item in error.errors(include_url=False))) from None

    @classmethod
    def _prefix(cls) -> str:
        return str(cls.model_config.get("env_prefix", ""))

    @classmethod
    def _problem(cls, item: Any) -> str:
        head, *rest = [str(part) for part in item["loc"]] or ["settings"]
        variable = ".".join([head if head.isupper() else cls._prefix() + head.upper(), *rest])
        given = shown(item["input"])
        if "@" in given or not _SECRET_WORDS.isdisjoint(
            variable.lower().replace(".", "_").split("_")
        ):  # addresses can hold passwords
            given = "(hidden)"
        return f"{variable}: {given} is not allowed; {item['msg'].removeprefix('Value error, ')}"


def read_settings_file() -> dict[str, Any]:
    """Return the settings file: ``wan-host.toml`` here, or what ``WAN_HOST_CONFIG`` names; empty where there is none."""
    path = Path(os.environ.get("WAN_HOST_CONFIG") or SETTINGS_FILE)
    try:
        with path.open("rb") as opened:
            return tomllib.load(opened)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _is_alias(settings: type[BaseSettings], name: str) -> bool:
    aliases = (field.validation_alias for field in settings.model_fields.values())
    return any(name in getattr(alias, "choices", (alias,)) for alias in aliases)
