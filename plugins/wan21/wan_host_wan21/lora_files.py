"""Where a job's adapters may come from: a folder that the operator fills, or repositories that the operator names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from wan_host import ModelLoadFailed, UnsupportedRequest, expanded
from wan_host_wan21.hub import HubId, fetch, parse

if TYPE_CHECKING:
    from wan_host import LaneContext
    from wan_host_wan21.settings import Wan21Settings


_SHOWN_CHARACTERS = 100
_PATTERN_CHARACTERS = frozenset("*?[")


def find_lora(name: str, field: str, settings: Wan21Settings, context: LaneContext) -> Path:
    """Return the safetensors file that a payload's name means: a name or path in the folder, or ``repo@commit[:file]``.

    Raise UnsupportedRequest where it is not there or not allowed.
    """
    hub = parse(name)
    if hub is not None:
        return _from_hub(hub, field, settings, context)
    folder = settings.loras_path.resolve()
    try:
        path = _in_folder(folder, name, field)
    except (OSError, ValueError):  # too long, a zero byte, half a surrogate pair
        raise UnsupportedRequest(f"{field}: {name[:_SHOWN_CHARACTERS]!r} can be the name of no file") from None
    if path is not None:
        return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.safetensors"))[:20]) or "none"
    raise UnsupportedRequest(f"{field}: there is no adapter {name!r}; in the folder: {known}")


def _in_folder(folder: Path, name: str, field: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.safetensors"):
        # Resolved first: a link or ".." must not lead out of the folder.
        path = candidate.resolve()
        if not path.is_relative_to(folder):
            raise UnsupportedRequest(f"{field}: {name!r} is outside of the folder for adapters")
        if path.is_file() and path.suffix == ".safetensors":
            return path
        if path.is_dir() and path != folder:
            return _only_file(path, name, field)
    return None


def find_fixed(name: str, settings: Wan21Settings) -> Path:
    """Return the file of an adapter that the operator gave a model: in the folder, or at any path."""
    try:
        elsewhere = expanded(Path(name))
    except ValueError as error:  # ~nobody
        raise ModelLoadFailed(f"the adapter {name!r} of the model is no path: {error}") from error
    for candidate in (settings.loras_path / name, settings.loras_path / f"{name}.safetensors", elsewhere):
        if candidate.is_file():
            return candidate
    raise ModelLoadFailed(f"the adapter {name!r} of the model is not there")


def _only_file(folder: Path, name: str, field: str) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UnsupportedRequest(f"{field}: {name!r} holds {len(files)} safetensors files; name one of them")
    return files[0]


def _from_hub(hub: HubId, field: str, settings: Wan21Settings, context: LaneContext) -> Path:
    name = f"{hub.repo}@{hub.revision}"
    if not any(fnmatchcase(hub.repo, pattern) for pattern in settings.lora_repos):
        raise UnsupportedRequest(f"{field}: {hub.repo} is not allowed; WAN_HOST_WAN21_LORA_REPOS lists the repositories that are")
    if not hub.pinned:
        raise UnsupportedRequest(f"{field}: {name} is not pinned; the revision must be a commit of 40 hex digits")
    if hub.file is None:
        return _only_file(fetch(hub, ["*.safetensors"], field, context), name, field)
    if _is_plain(hub.file):
        path = fetch(hub, [hub.file], field, context) / hub.file
        if path.is_file():
            return path
    raise UnsupportedRequest(f"{field}: {name} holds no safetensors file {hub.file[:_SHOWN_CHARACTERS]!r}")


def _is_plain(file: str) -> bool:
    """Whether a name is one safetensors file's, below the repository. The hub's library takes ``*`` for all that there is."""
    path = PurePosixPath(file)
    inside = not path.is_absolute() and ".." not in path.parts and _PATTERN_CHARACTERS.isdisjoint(file)
    return inside and str(path) == file and path.suffix == ".safetensors"  # a slash at the end means a folder
