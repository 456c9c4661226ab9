"""A store in a folder that can be taken down: a publisher plugin for tests.

``WAN_HOST_TESTING_STORE`` names the folder; while a file ``down`` stands in it, publishing fails as a store does that is down.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wan_host.errors import PublishFailed
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
