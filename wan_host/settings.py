"""The settings of a worker: environment over ``wan-host.toml``, read once, frozen.

The seed's variables keep their names; everything else is ``WAN_HOST_*``. Values that are empty count as not set, because
that is how pods and compose files leave a variable out.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from wan_host.errors import SettingsError, shown
from wan_host.plugin_settings import SETTINGS_FILE, expanded, read_settings_file

Names = Annotated[tuple[str, ...], NoDecode]


def _seed_name(*names: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(*names, *(name.lower() for name in names)))


def _own_name() -> str:
    """Name this process; what no worker id may hold becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] + f"-{os.getpid()}"


class Settings(BaseSettings):
    """Every setting of the host. Times are seconds, sizes bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="WAN_HOST_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path("~/.local/share/wan-host")
    worker_id: str = Field(default_factory=_own_name, pattern=r"^[A-Za-z0-9._-]{1,128}$")

    queue_url: str | None = Field(default=None, repr=False)
    queue_name: str = Field(default="wan_queue", pattern=r"^[A-Za-z0-9_.:-]{1,100}$")
    upstash_redis_rest_url: str | None = _seed_name("UPSTASH_REDIS_REST_URL")
    upstash_redis_rest_token: SecretStr | None = _seed_name("UPSTASH_REDIS_REST_TOKEN")
    lease_seconds: float | None = Field(default=None, ge=3, le=3600)
    max_attempts: int = Field(default=3, ge=1, le=20)
    max_entry_bytes: int = Field(default=1 << 20, ge=1024, le=10_000_000)
    idle_seconds: float | None = Field(default=None, gt=0)
    prefetch_seconds: float = Field(default=20, ge=0)
    overlap: bool = True
    checkpoint_every: int | None = Field(default=None, ge=1)
    checkpoint_store: bool = False
    checkpoint_hours: float = Field(default=48, gt=0)
    fair_users: bool = False

    model: str | None = None
    models_dir: Path | None = None
    publisher: str = "local"
    enhancer: str | None = None
    enhance_failure: Literal["pass", "fail"] = "pass"
    required_plugins: Names = ()
    disabled_plugins: Names = ()
    bucket: str = Field(default="workspace-temp", pattern=r"^[A-Za-z0-9._-]{1,100}$")

    callback_url: str | None = Field(default=None, repr=False)
    job_callback_secret: SecretStr | None = _seed_name("JOB_CALLBACK_SECRET")
    callback_timeout: float = Field(default=10, gt=0, le=300)
    report_hours: float = Field(default=24, gt=0)

    host: str | None = None
    port: int = Field(default=7860, ge=0, le=65535)
    wan_worker_api_key: SecretStr | None = _seed_name("WAN_WORKER_API_KEY")
    cors_origins: Names = ()
    metrics_key: bool = False
    tracing: bool = False
    max_body_bytes: int = Field(default=16 << 20, ge=1024)
    submit_rate: float = Field(default=600, gt=0)
    enhance_rate: float = Field(default=60, gt=0)
    runpod_pod_id: str | None = _seed_name("RUNPOD_POD_ID")
    public_url: str | None = None
    devices: str = "all"
    vram_limit_gb: float | None = Field(default=None, gt=0)

    max_prompt_characters: int = Field(default=4000, ge=1)
    job_deadline: float = Field(default=3600, gt=0)
    job_deadlines: Annotated[dict[str, Annotated[float, Field(gt=0)]], NoDecode] = Field(default_factory=dict)
    stage_timeout: float = Field(default=600, gt=0)
    load_timeout: float = Field(default=900, gt=0)
    step_timeout: float = Field(default=300, gt=0)
    cancel_grace: float = Field(default=30, gt=0)
    stop_grace: float = Field(default=25, ge=0)
    reference_timeout: float = Field(default=30, gt=0)
    reference_max_bytes: int = Field(default=20_000_000, gt=0)
    reference_max_pixels: int = Field(default=50_000_000, gt=0)
    reference_hosts: Names = ()
    publish_timeout: float = Field(default=600, gt=0)
    publish_hours: float = Field(default=12, gt=0)
    min_free_bytes: int = Field(default=500_000_000, ge=0)
    spool_max_bytes: int | None = Field(default=None, gt=0)
    outputs_max_bytes: int | None = Field(default=None, gt=0)
    outputs_hours: float | None = Field(default=None, gt=0)
    log_prompts: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("required_plugins", "disabled_plugins", "reference_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read lists as arrays from the file and comma-separated from the environment."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("job_deadlines", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        """Read a table from the file and JSON from the environment."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('must be JSON such as {"image_fast": 120}, seconds by job type') from None

    @field_validator("wan_worker_api_key", "job_callback_secret", "upstash_redis_rest_token", mode="before")
    @classmethod
    def _no_blank_secret(cls, value: object) -> object:
        """Read a blank secret as none: an empty key would open the routes to everybody, on all interfaces."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        return None if isinstance(text, str) and not text.strip() else value

    @field_validator("data_dir", "models_dir", mode="after")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else expanded(value).absolute()

    @field_validator("queue_url", mode="after")
    @classmethod
    def _queue_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", origin):
                raise ValueError("every origin must look like https://example.org or http://example.org:8080")
        return value

    @field_validator("callback_url", "public_url", "upstash_redis_rest_url", mode="after")
    @classmethod
    def _http_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic-settings' own
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file in the working directory (``WAN_HOST_CONFIG`` names another)."""
        file = Path(os.environ.get("WAN_HOST_CONFIG") or SETTINGS_FILE)
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file))

    @property
    def models_path(self) -> Path:
        """Where models are looked for by name."""
        return self.models_dir or self.data_dir / "models"

    @property
    def outputs_path(self) -> Path:
        """Where the local publisher puts files."""
        return self.data_dir / "outputs"

    @property
    def spool_path(self) -> Path:
        """Where finished work waits to be delivered."""
        return self.data_dir / "spool"

    @property
    def checkpoints_path(self) -> Path:
        """Where unfinished jobs are kept between attempts."""
        return self.data_dir / "checkpoints"

    def deadline_of(self, job_type: str) -> float:
        """Return the seconds that one run of a job of this type has."""
        return self.job_deadlines.get(job_type, self.job_deadline)

    @property
    def bind_host(self) -> str:
        """The address to listen on: all interfaces only where an API key protects the routes, or where a setting says so."""
        if self.host is not None:
            return self.host
        return "0.0.0.0" if self.wan_worker_api_key is not None else "127.0.0.1"  # noqa: S104  # a pod's proxy needs it

    @property
    def url(self) -> str:
        """The worker's public address, empty if none is known."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return f"https://{self.runpod_pod_id}-{self.port}.proxy.runpod.net" if self.runpod_pod_id else ""


def load_settings() -> Settings:
    """Read the settings. Raises SettingsError, one line that names the variable, the value and what is allowed."""
    file = os.environ.get("WAN_HOST_CONFIG")
    if file and not Path(file).is_file():
        raise SettingsError(f"WAN_HOST_CONFIG: {file!r} is not a file")
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors(include_url=False))
        raise SettingsError(problems) from None
    except (ValueError, OSError) as error:  # a settings file that is no TOML, or that may not be read
        raise SettingsError(f"{file or SETTINGS_FILE}: {error}") from None


def unknown_settings(plugins: Iterable[str]) -> list[str]:
    """Return a line for every variable and every entry of the file that looks like a setting and is none.

    Variables that begin with ``WAN_HOST_`` and a plugin's name, and tables of the file, belong to plugins.
    """
    known = {_variable(name) for name in Settings.model_fields} | {"WAN_HOST_CONFIG"}
    families = tuple(f"WAN_HOST_{name.replace('-', '_').upper()}_" for name in ("testing", *plugins))
    file = Path(os.environ.get("WAN_HOST_CONFIG") or SETTINGS_FILE)
    entries = [name for name, value in read_settings_file().items() if not isinstance(value, dict)]
    given = {name: name for name in os.environ if name.startswith("WAN_HOST_")}
    given |= {_variable(name): f"{file.name}: {name}" for name in entries}
    return [
        f"{shown} is no setting of the host or of an installed plugin{_suggestion(name, known)}"
        for name, shown in sorted(given.items())
        if name.upper() not in known and not name.upper().startswith(families)
    ]


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f" (did you mean {close[0]}?)" if close else ""


def _problem(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    secret = any(word in name.lower() for word in ("secret", "token", "key", "url"))
    given = "(hidden)" if secret else shown(item["input"])
    return f"{_variable(name)}: {given} is not allowed; {item['msg'].removeprefix('Value error, ')}"


def _variable(name: str) -> str:
    return name.upper() if name.upper() in _SEED_NAMES else f"WAN_HOST_{name.upper()}"


_SEED_NAMES = frozenset(
    {
        "UPSTASH_REDIS_REST_URL",
        "UPSTASH_REDIS_REST_TOKEN",
        "JOB_CALLBACK_SECRET",
        "WAN_WORKER_API_KEY",
        "RUNPOD_POD_ID",
    }
)
