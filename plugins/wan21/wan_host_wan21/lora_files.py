"""Where a job's adapters may come from: a folder that the operator fills, or repositories that the operator names."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from wan_host import RetryableError, UnsupportedRequest

if TYPE_CHECKING:
    from wan_host import LaneContext
    from wan_host_wan21.settings import Wan21Settings

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^:@]+)(?::(?P<file>[^:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BEAT_SECONDS = 1.0


def find_lora(name: str, field: str, settings: Wan21Settings, context: LaneContext) -> Path:
    """Return the safetensors file that a payload's name means: a name or path in the folder, or ``repo@commit[:file]``.

    Raise UnsupportedRequest where it is not there or not allowed.
    """
    hub = _HUB.fullmatch(name)
    if hub is not None:
        return _from_hub(hub, field, settings, context)
    folder = settings.loras_path.resolve()
    for candidate in (folder / name, folder / f"{name}.safetensors"):
        # Resolved first: a link or ".." must not lead out of the folder.
        path = candidate.resolve()
        if not path.is_relative_to(folder):
            raise UnsupportedRequest(f"{field}: {name!r} is outside of the folder for adapters")
        if path.is_file() and path.suffix == ".safetensors":
            return path
        if path.is_dir() and path != folder:
            return _only_file(path, name, field)
    known = ", ".join(sorted(path.stem for path in folder.glob("*.safetensors"))[:20]) or "none"
    raise UnsupportedRequest(f"{field}: there is no adapter {name!r}; in the folder: {known}")


def _only_file(folder: Path, name: str, field: str) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UnsupportedRequest(f"{field}: {name!r} holds {len(files)} safetensors files; name one of them")
    return files[0]


def _from_hub(hub: re.Match[str], field: str, settings: Wan21Settings, context: LaneContext) -> Path:
    repo, revision, file = hub["repo"], hub["revision"], hub["file"]
    if not any(fnmatchcase(repo, pattern) for pattern in settings.lora_repos):
        raise UnsupportedRequest(f"{field}: {repo} is not allowed; WAN_HOST_WAN21_LORA_REPOS lists the repositories that are")
    if not _COMMIT.fullmatch(revision):
        raise UnsupportedRequest(f"{field}: {repo}@{revision} is not pinned; the revision must be a commit of 40 hex digits")
    folder = _download(repo, revision, file, field, context)
    if file is None:
        return _only_file(folder, f"{repo}@{revision}", field)
    path = folder / file
    if Path(file).suffix != ".safetensors" or ".." in Path(file).parts or not path.is_file():
        raise UnsupportedRequest(f"{field}: {repo}@{revision} holds no safetensors file {file!r}")
    return path


def _download(repo: str, revision: str, file: str | None, field: str, context: LaneContext) -> Path:
    """Fetch into the hub's cache, or find there, while the lane's heart goes on beating."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [file or "*.safetensors"]
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        running = pool.submit(snapshot_download, repo, revision=revision, allow_patterns=patterns)
        while True:
            context.progress(f"fetching {repo}")
            try:
                return Path(running.result(timeout=_BEAT_SECONDS))
            except NotYet:
                if running.done():
                    raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UnsupportedRequest(f"{field}: {repo}@{revision} is not on the hub") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise RetryableError(f"{field}: {repo}@{revision} could not be fetched: {error}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
