"""The plugin's settings: ``WAN_HOST_WAN21_*`` in the environment over the table ``[wan21]`` of ``wan-host.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from wan_host import PluginSettings, SettingsError, expanded
from wan_host_wan21.memory import Placement
from wan_host_wan21.presets import Preset

_PREFIX = "WAN_HOST_WAN21_"
Names = Annotated[tuple[str, ...], NoDecode]


def _of_host(name: str) -> AliasChoices:
    """Accept the plugin's own variable, else the host's."""
    return AliasChoices(_PREFIX + name.upper(), f"WAN_HOST_{name.upper()}", name)


class Adapter(BaseModel, frozen=True, extra="forbid"):
    """An adapter that is always in a model of the table: a name in the adapters' folder, or any path, and its weight."""

    name: str
    scale: float = Field(default=1.0, ge=-4, le=4)


class Defaults(BaseModel, frozen=True, extra="forbid"):
    """Defaults of a model of the table, within what a job may ask for; what is left out is the wire contract's."""

    width: int = Field(default=480, gt=0, le=4096, multiple_of=16)
    height: int = Field(default=832, gt=0, le=4096, multiple_of=16)
    frames: int = Field(default=83, ge=1, le=83)
    fps: int = Field(default=24, ge=8, le=24)
    sample_shift: float = Field(default=5.0, gt=0, le=30)
    sample_solver: Literal["unipc", "dpm++"] = "dpm++"
    fast_steps: int = Field(default=25, ge=1, le=200)
    high_steps: int = Field(default=50, ge=1, le=200)
    fast_guidance: float = Field(default=6.5, ge=0, le=30)
    high_guidance: float = Field(default=7.5, ge=0, le=30)


class CustomModel(BaseModel, frozen=True, extra="forbid"):
    """A row of the table: where its files are (``path``, or those of the model ``base``) and what sets it apart."""

    path: str = ""
    """A folder (relative ones are below the models folder), or ``owner/repo@commit``."""
    base: str = ""
    description: str = ""
    defaults: Defaults = Defaults()
    adapters: tuple[Adapter, ...] = ()

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if bool(self.path) == bool(self.base):
            raise ValueError("give either path or base")
        return self


class Wan21Settings(PluginSettings, env_prefix=_PREFIX):
    """What environment and file say. ``models_dir`` is searched for checkpoints; it defaults to ``models`` in the data folder."""

    data_dir: Path = Field(default=Path("~/.local/share/wan-host"), validation_alias=_of_host("data_dir"))
    models_dir: Path | None = Field(default=None, validation_alias=_of_host("models_dir"))
    loras_dir: Path | None = None
    """Adapters that jobs may name; defaults to ``loras`` in the data folder."""
    lora_repos: Names = ()
    """Hub repositories whose adapters jobs may name, as patterns such as ``me/*``; none by default."""
    vram_limit_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False, validation_alias=_of_host("vram_limit_gb"))
    """GiB of the device's memory that may be used; without it, what is free."""
    placement: Placement | None = None
    """A placement for every job, instead of the fastest one that fits."""
    preset: Preset = Preset.EXACT
    """The preset of jobs that name none, where their model has it."""
    turbo: Path | None = None
    """A step-distilled adapter for models without one of their own: its file, or its name in the adapters' folder."""
    compile: bool | None = None
    """Compile the transformer's blocks; without it, on CUDA."""
    warm_up: bool = True
    """Compile for the model's default shapes when it is loaded, rather than in the first job."""
    fp8: bool = True
    """Let ``fast`` and ``turbo`` run linear layers in 8 bits where the GPU has the instructions."""
    kernels: bool = True
    """Run the plugin's own kernels in compiled blocks on CUDA."""
    decode_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the VAE's decoder on a GPU."""
    decode_fused: bool | None = None
    """Run each norm and activation of the VAE in one kernel, on CUDA; where nothing is set, if it runs there."""
    models: dict[str, CustomModel] = Field(default_factory=dict)
    """More models to offer, by name: JSON in the environment, ``[wan21.models.NAME]`` in the file."""
    previews: bool = True
    """Offer about eight small pictures of every unfinished clip."""
    pin_frames: bool = True
    """Make the first and last frame equal to their references; see ``pinning``."""

    @field_validator("lora_repos", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Read lists as arrays from the file and comma-separated from the environment."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_dir", "models_dir", "loras_dir", mode="after")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else expanded(value).absolute()

    @property
    def models_path(self) -> Path:
        """The folder to search for checkpoints by name."""
        return self.models_dir or self.data_dir / "models"

    @property
    def turbo_path(self) -> Path | None:
        """The file that ``turbo`` names. Raise SettingsError where it is nowhere."""
        if self.turbo is None:
            return None
        try:
            places = (expanded(self.turbo), self.loras_path / self.turbo, self.loras_path / f"{self.turbo}.safetensors")
        except ValueError as error:
            raise SettingsError(f"{_PREFIX}TURBO: {str(self.turbo)!r} is not allowed; {error}") from error
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise SettingsError(f"{_PREFIX}TURBO: {str(self.turbo)!r} is neither a file nor a name in {self.loras_path}")
        return found

    @property
    def loras_path(self) -> Path:
        """The folder that jobs' adapters are read from."""
        return self.loras_dir or self.data_dir / "loras"


def read_settings() -> Wan21Settings:
    """Read the settings. Raise SettingsError with one line that names what is wrong."""
    return Wan21Settings.read()
