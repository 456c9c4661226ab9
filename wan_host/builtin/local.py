"""Publishing into a local folder: ``{outputs}/{bucket}/{user_id}/{job_id}/{name}``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from wan_host.errors import PublishFailed, PublishRefused, SettingsError
from wan_host.hookspecs import hookimpl
from wan_host.media import PublishedFile

if TYPE_CHECKING:
    from wan_host.context import HookContext
    from wan_host.media import OutputFile

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CHUNK = 1 << 20
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalPublisher:
    """Copies files into ``outputs/bucket``; a reader sees the old file or the whole new one, also after a power failure."""

    def __init__(self, outputs: Path, bucket: str) -> None:
        """Touch nothing yet: ``outputs`` is made for the first file. Raises SettingsError for a bucket that is no plain name."""
        if not _is_plain(bucket):
            raise SettingsError(f"bucket: {bucket!r} is not allowed; use letters, digits, '.', '_' and '-'")
        self._root, self._bucket = outputs / bucket, bucket

    @hookimpl
    def publish(self, file: OutputFile, context: HookContext) -> PublishedFile:
        """Copy ``file`` to its key. Raises PublishRefused for a bad key or missing rights, PublishFailed for a full disk."""
        segments = file.key.split("/")
        if not all(map(_is_plain, segments)):
            raise PublishRefused(f"key: {file.key!r} is not allowed; every part must be letters, digits, '.', '_' or '-'")
        target = self._root.joinpath(*segments)
        partial = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            size = _copy(file.path, partial, context)
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _failure(error, file.key) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return PublishedFile(url=f"{self._bucket}/{file.key}", file_size_bytes=size)


def _is_plain(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != ""


def _copy(source: Path, partial: Path, context: HookContext) -> int:
    """Copy in chunks, down to the disk, and return the size that the disk has."""
    with source.open("rb") as reader, partial.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            context.check()
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
        return os.fstat(writer.fileno()).st_size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(error: OSError, key: str) -> PublishFailed | PublishRefused:
    reason = error.strerror or type(error).__name__
    if error.errno in _REFUSED:
        return PublishRefused(f"{key} cannot be written into the output folder: {reason}")
    if error.errno in _FULL:
        return PublishFailed(f"{key} does not fit on the disk of the output folder: {reason}")
    return PublishFailed(f"{key} could not be written: {reason}")
