"""The plugin's settings: ``WAN_HOST_QWEN_ENHANCE_*`` in the environment over ``[qwen_enhance]`` of ``wan-host.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator

from wan_host import PluginSettings, expanded

_PREFIX = "WAN_HOST_QWEN_ENHANCE_"


def _of_host(name: str) -> AliasChoices:
    """Accept the plugin's own variable, else the host's."""
    return AliasChoices(_PREFIX + name.upper(), f"WAN_HOST_{name.upper()}", name)


class EnhanceSettings(PluginSettings, env_prefix=_PREFIX):
    """Which model enhances prompts, and how. Times are seconds."""

    data_dir: Path = Field(default=Path("~/.local/share/wan-host"), validation_alias=_of_host("data_dir"))
    models_dir: Path | None = Field(default=None, validation_alias=_of_host("models_dir"))
    devices: str = Field(default="all", validation_alias=AliasChoices("WAN_HOST_DEVICES", "devices"))
    """The host's: the enhance lane is on the first of them."""

    path: str = ""
    """A folder, a ``.gguf`` file (relative ones are below the models folder), ``owner/name[@revision]`` of the hub's cache, or
    ``smollm2``. Empty: Qwen2.5-7B if it is in the models folder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """``auto`` is the enhance lane's own device."""
    threads: int = Field(default=0, ge=0)
    """Of a CPU; 0 is half of its cores, because the video model wants the others."""
    prompting: Literal["auto", "chat", "completion"] = "auto"
    """``auto`` is ``chat`` for models that end their turns as their chat template does."""
    max_new_tokens: int = Field(default=160, ge=16, le=1024)
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest word each time. Above, words are drawn, from a seed that the prompt gives."""
    repetition_penalty: float = Field(default=1.15, ge=1, le=2)
    """Divides the scores of what has been written already, the prompt left out."""
    timeout: float = Field(default=120, gt=0)
    """For one prompt, both attempts together; then the prompt stays as it was."""
    cache_size: int = Field(default=256, ge=0)
    """So many enhancements are remembered while the model is loaded."""
    video_instructions: Path | None = None
    image_instructions: Path | None = None

    @field_validator("data_dir", "models_dir", "video_instructions", "image_instructions", mode="after")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else expanded(value).absolute()

    @field_validator("video_instructions", "image_instructions", mode="after")
    @classmethod
    def _is_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @property
    def models_path(self) -> Path:
        """The folder to search for models by name."""
        return self.models_dir or self.data_dir / "models"


def read_settings() -> EnhanceSettings:
    """Read the settings. Raise SettingsError with one line that names what is wrong."""
    return EnhanceSettings.read()
