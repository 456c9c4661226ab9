"""wan-host-thumbnail: a small picture beside every asset, and, where the settings ask, a preview that moves and a sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wan_host import DerivedFile, HookContext, Media


@hookimpl
def postprocess(media: Media, context: HookContext) -> Iterable[DerivedFile]:
    """Write ``{i}.thumb.webp`` and what else the settings ask for into the job's work folder."""
    from wan_host_thumbnail.derive import derive
    from wan_host_thumbnail.settings import read_settings

    return derive(media, context, read_settings())
