"""wan-host-my-plugin: publishing into a folder, such as one that a web server serves.

``WAN_HOST_PUBLISHER=my_plugin`` chooses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from wan_host import HookContext, OutputFile, PublishedFile


@hookimpl
def publish(file: OutputFile, context: HookContext) -> PublishedFile:
    """Put a file under its key, replacing what stands there."""
    from wan_host_my_plugin.folder import store
    from wan_host_my_plugin.settings import Settings

    return store(file, context, Settings.read())
