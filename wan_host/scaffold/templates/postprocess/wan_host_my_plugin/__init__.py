"""wan-host-my-plugin: a file ``{i}.about.json`` beside every asset, with what was measured on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from wan_host import DerivedFile, HookContext, Media


@hookimpl
def postprocess(media: Media, context: HookContext) -> list[DerivedFile]:
    """Derive the files; they are published with the asset, as ``{i}.{role}{suffix}``."""
    from wan_host_my_plugin.about import describe

    return [describe(media, context)]
