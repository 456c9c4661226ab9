"""Fetch a repository of the hub into a folder, going on in the middle of a file, and checking every file by its digest.

The hub's own library drops what a process that ended had of a file (huggingface_hub 2.4.0, file_download.py:2065), and the
shards of these checkpoints have gigabytes.
"""

from __future__ import annotations

import fcntl
import hashlib
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import click
import httpx

from wan_host_wan21.layout import require_space
from wan_host_wan21.turbo import FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Progress = Callable[["RemoteFile", int], None]
    """Hears of bytes of a file that are there (negative: that they are not, after all)."""

_CONNECTIONS = 4
_CHUNK = 1 << 20
_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_TIMEOUT = httpx.Timeout(30.0)
_LAST = "model_index.json"
"""Without it a folder is no checkpoint: it comes when everything else is there."""
_REPOSITORY = ".pull.repository"
"""Says whose files a folder holds: its name does not say the owner."""


class DownloadFailed(Exception):
    """What could not be fetched, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository at a commit; ``digest`` is the SHA-256 of what is stored as LFS, else git's SHA-1 of the blob."""

    path: str
    url: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """Return the running digest, to be given the content."""
        if len(self.digest) == hashlib.sha256().digest_size * 2:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def list_repository(repo: str, revision: str | None, patterns: Sequence[str]) -> list[RemoteFile]:
    """Return the files that match ``patterns``, all of one commit. Raise what huggingface_hub raises."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    found = filter_repo_objects(info.siblings or [], allow_patterns=list(patterns), key=lambda sibling: sibling.rfilename)
    return [
        RemoteFile(
            path=file.rfilename,
            url=hf_hub_url(repo, file.rfilename, revision=info.sha),
            size=int(file.size or 0),
            digest=file.lfs.sha256 if file.lfs is not None else str(file.blob_id),
        )
        for file in found
    ]


def download(repo: str, files: Sequence[RemoteFile], target: Path, progress: Progress) -> None:
    """Bring ``files`` of ``repo`` into ``target``; what is there and right stays, what is there in part is gone on with.

    Raise DownloadFailed where one does not come, ClickException where the disk is too small or the folder holds another
    repository. Interrupted, it keeps what it has.
    """
    from huggingface_hub.utils import build_hf_headers

    for file in files:
        if not (target / file.path).resolve().is_relative_to(target.resolve()):
            raise DownloadFailed(f"{file.path!r} is no path inside of the folder")
    stop = Event()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # so that ranges count the file's own bytes
    with _alone(target), httpx.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True) as client:
        right = _require_same(target, repo, files, progress, stop)
        require_space(target, sum(file.size - _there(target / file.path) for file in files))
        (target / _REPOSITORY).write_text(repo, encoding="utf-8")
        first = [file for file in files if file.path != _LAST and file not in right]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            running = [pool.submit(_fetch, client, file, target / file.path, progress, stop) for file in first]
            try:
                for future in wait(running, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        for file in files:
            if file.path == _LAST:
                _fetch(client, file, target / file.path, progress, stop)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the folder, so that two downloads do not write one file."""
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".pull.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed(f"another pull is writing into {target}") from None
        yield


def _require_same(target: Path, repo: str, files: Sequence[RemoteFile], progress: Progress, stop: Event) -> set[RemoteFile]:
    """Refuse a folder with weights that are not those of ``repo``; return the files that were read for it, and are right.

    One that does not say whose it is was pulled by an earlier version, or it is the user's own: its weights tell.
    """
    marker = target / _REPOSITORY
    held = marker.read_text(encoding="utf-8") if marker.is_file() else ""
    if held and held.lower() != repo.lower():  # the hub tells no letters apart by their case
        raise _refused(target, f"{held}, and {repo} would replace it")
    if held:
        return set()
    weights = {path.relative_to(target).as_posix() for path in target.rglob("*.safetensors")}
    other = weights - {file.path for file in files} - {FILE}  # that one is put beside a checkpoint's own files
    if other:
        raise _refused(target, f"{min(other)}, which {repo} does not have")
    right: set[RemoteFile] = set()
    for file in files:
        if file.path.endswith(".safetensors") and (target / file.path).is_file():
            if not _is_right(target / file.path, file, progress, stop):
                raise _refused(target, f"another {file.path} than {repo}, which would replace it")
            right.add(file)
    return right


def _refused(target: Path, holds: str) -> click.ClickException:
    return click.ClickException(f"{target} holds {holds}: name another folder with --output, or remove that one")


def _there(path: Path) -> int:
    return next((place.stat().st_size for place in (path, _partial(path)) if place.is_file()), 0)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _fetch(client: httpx.Client, file: RemoteFile, path: Path, progress: Progress, stop: Event) -> None:
    """Bring one file. What lies at ``path`` with other content is fetched anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        if _is_right(path, file, progress, stop):
            return
        path.unlink()
    failed = 0
    while True:
        had = _size(_partial(path))
        try:
            _go_on(client, file, path, progress, stop)
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            failed = 1 if _size(_partial(path)) > had else failed + 1
            if failed >= _TRIES or not _passing(error):
                raise DownloadFailed(f"{file.path}: {_said(error)}") from error
            stop.wait(min(_FIRST_WAIT * 2 ** (failed - 1), _LONGEST_WAIT))
        else:
            return


def _go_on(client: httpx.Client, file: RemoteFile, path: Path, progress: Progress, stop: Event) -> None:
    """Append to what is there of a file until it is whole, check it, and give it its name."""
    partial, digest = _partial(path), file.hasher()
    with partial.open("ab+") as opened:
        opened.seek(0)
        have = 0
        while chunk := opened.read(_CHUNK):
            _go_or_stop(stop)
            digest.update(chunk)
            have += len(chunk)
        if have > file.size:
            have, digest = 0, file.hasher()
            opened.truncate(0)
        if have < file.size:
            with client.stream("GET", file.url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
                response.raise_for_status()
                if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
                    have, digest = 0, file.hasher()
                    opened.truncate(0)
                progress(file, have)
                try:
                    for chunk in response.iter_bytes():
                        _go_or_stop(stop)
                        opened.write(chunk)
                        digest.update(chunk)
                        have += len(chunk)
                        progress(file, len(chunk))
                        if have > file.size:
                            break  # whatever else comes, this is not the file
                finally:
                    if have < file.size:
                        progress(file, -have)  # the next try counts it again
        else:
            progress(file, have)
    if have != file.size or digest.hexdigest() != file.digest:
        partial.unlink()
        raise DownloadFailed(f"{file.path}: what came is not what the hub has (by its digest); run the command again")
    partial.replace(path)


def _is_right(path: Path, file: RemoteFile, progress: Progress, stop: Event) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest = file.hasher()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            _go_or_stop(stop)
            digest.update(chunk)
    right = bool(digest.hexdigest() == file.digest)
    if right:
        progress(file, file.size)
    return right


def _go_or_stop(stop: Event) -> None:
    if stop.is_set():
        raise DownloadFailed("stopped")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _passing(error: httpx.TransportError | httpx.HTTPStatusError) -> bool:
    """Whether another try may help."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or error.response.status_code in {408, 429}
    return True


def _said(error: httpx.TransportError | httpx.HTTPStatusError) -> str:
    if not isinstance(error, httpx.HTTPStatusError):
        return f"{type(error).__name__}: {error}"
    status = error.response.status_code
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return f"the hub answered {status}: HF_TOKEN must be that of somebody with access"
    return f"the hub answered {status}"
