"""Putting files into the folder. Put the upload to your store in its place: the rules stay the same."""

from __future__ import annotations

import contextlib
import os
import secrets

from wan_host import HookContext, OutputFile, PublishedFile, PublishFailed, PublishRefused
from wan_host_my_plugin.settings import Settings

_CHUNK = 1 << 20


def store(file: OutputFile, context: HookContext, settings: Settings) -> PublishedFile:
    """Copy the file to its key; readers see the old one or the whole new one.

    Raises PublishRefused for what will never work, PublishFailed for what may work later: the host tries that again for hours.
    """
    if settings.folder is None:
        raise PublishRefused("WAN_HOST_MY_PLUGIN_FOLDER: it is not set, so there is nowhere to publish to")
    target = settings.folder / file.key
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.path.open("rb") as reader, partial.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                context.check()  # ends here when the job was cancelled or its time is up
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        partial.replace(target)
        size = target.stat().st_size
    except PermissionError as error:
        raise PublishRefused(f"{file.key}: {error.strerror} in {settings.folder}") from error
    except OSError as error:
        raise PublishFailed(f"{file.key}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return PublishedFile(url=f"{settings.url.rstrip('/')}/{file.key}".lstrip("/"), file_size_bytes=size)
