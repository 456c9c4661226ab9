"""A store in a folder that can be taken down: a plugin for tests that publishes and reads back.

``WAN_HOST_TESTING_STORE`` names the folder, which stands for the bucket ``store``; while a file ``down`` stands in it, both fail
as they do with a store that is down.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wan_host.errors import PublishFailed, ReferenceRejected, ReferenceUnreachable
from wan_host.hookspecs import hookimpl
from wan_host.media import OutputFile, PublishedFile

FOLDER_VARIABLE = "WAN_HOST_TESTING_STORE"


@hookimpl
def publish(file: OutputFile) -> PublishedFile:
    """Copy into the folder, or fail while it is down."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    if (folder / "down").exists():
        raise PublishFailed("the store is down")
    target = folder / file.key
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file.path, target)
    return PublishedFile(url=f"store/{file.key}", file_size_bytes=target.stat().st_size)


@hookimpl
def fetch_reference(uri: str) -> bytes | None:
    """Read what was published at ``store/...``."""
    bucket, _, key = uri.partition("/")
    folder = os.environ.get(FOLDER_VARIABLE)
    if bucket != "store" or folder is None:
        return None
    if (Path(folder) / "down").exists():
        raise ReferenceUnreachable("the store is down")
    try:
        return (Path(folder) / key).read_bytes()
    except FileNotFoundError:
        raise ReferenceRejected(f"{uri!r} is not there") from None
