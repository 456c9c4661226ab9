"""The plugin's settings: the environment over ``wan-host.toml``.

The services' variables keep their usual names, and what the host reads as well (``WAN_HOST_BUCKET``) means the same here. The
plugin's own are ``WAN_HOST_SUPABASE_*``, or the table ``[supabase]`` of the file without that prefix.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from wan_host import PluginSettings


def _known_as(*names: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(*names, *(name.lower() for name in names)))


def _of_host(name: str) -> AliasChoices:
    """Read the host's setting of that name, under its own variable or from the file's top level."""
    return AliasChoices(f"WAN_HOST_{name.upper()}", name)


class SupabaseSettings(PluginSettings, env_prefix="WAN_HOST_SUPABASE_"):
    """What the plugin needs to know. Times are seconds, sizes bytes."""

    supabase_url: str | None = _known_as("SUPABASE_URL")
    supabase_service_role_key: SecretStr | None = _known_as("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY")
    job_callback_secret: SecretStr | None = _known_as("JOB_CALLBACK_SECRET")
    runpod_pod_id: str | None = _known_as("RUNPOD_POD_ID")

    bucket: str = Field(default="workspace-temp", validation_alias=_of_host("bucket"), pattern=r"^[A-Za-z0-9._-]{1,100}$")
    callback_timeout: float = Field(default=10, validation_alias=_of_host("callback_timeout"), gt=0, le=300)
    reference_timeout: float = Field(default=30, validation_alias=_of_host("reference_timeout"), gt=0)
    reference_max_bytes: int = Field(default=20_000_000, validation_alias=_of_host("reference_max_bytes"), gt=0)

    reference_buckets: Annotated[tuple[str, ...], NoDecode] = ("workspace-temp", "user-library")
    """Buckets that references are read from, beside the one that is published to."""
    cache_seconds: int = Field(default=3600, ge=0)
    """How long browsers and the CDN may keep a published file."""
    timeout: float = Field(default=30, gt=0, le=600)
    """How long the store may stand still within one request."""
    tries: int = Field(default=4, ge=1, le=20)
    """Faults in a row, without progress between them, until the host is told."""
    registers: bool = Field(default=True, validation_alias=AliasChoices("WAN_HOST_SUPABASE_REGISTER", "register"))
    register_seconds: float = Field(default=300, ge=1)
    """How often the worker's address is told again."""

    @field_validator("reference_buckets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read the list as an array from the file and comma-separated from the environment."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("supabase_url", mode="after")
    @classmethod
    def _root(cls, value: str | None) -> str | None:
        """Take the root of the project's API, without a slash at the end: paths are appended to it."""
        if value is None:
            return None
        value = value.strip().rstrip("/")
        scheme, _, rest = value.partition("://")
        if scheme not in {"http", "https"} or not rest or not rest.isprintable() or set(rest) & set(" ?#@\\"):
            raise ValueError("must be the project's address, like https://abcdefgh.supabase.co")
        return value

    @field_validator("supabase_service_role_key", "job_callback_secret", mode="after")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        """Strip what copying leaves at the ends; refuse what no header can carry."""
        if value is None:
            return None
        text = value.get_secret_value().strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("must be printable ASCII without spaces")
        return SecretStr(text)

    @property
    def service_key(self) -> str:
        """The service role key, empty if there is none."""
        return "" if self.supabase_service_role_key is None else self.supabase_service_role_key.get_secret_value()

    @property
    def missing(self) -> str:
        """The names of the settings without which Supabase cannot be used, empty if all are there."""
        names = (("SUPABASE_URL", self.supabase_url), ("SUPABASE_SERVICE_ROLE_KEY", self.service_key))
        return " and ".join(name for name, value in names if not value)

    def auth_headers(self) -> dict[str, str]:
        """Return the two headers by which gateway and services know the service role."""
        return {"Authorization": f"Bearer {self.service_key}", "apikey": self.service_key} if self.service_key else {}

    def without_secrets(self, text: str) -> str:
        """Return a stranger's text with our secrets struck out: answers sometimes quote what was asked."""
        for secret in (self.supabase_service_role_key, self.job_callback_secret):
            if secret is not None:
                text = text.replace(secret.get_secret_value(), "(hidden)")
        return text


@cache
def read_settings() -> SupabaseSettings:
    """Read the settings once in a process. Raise SettingsError with one line that names what is wrong."""
    return SupabaseSettings.read()
