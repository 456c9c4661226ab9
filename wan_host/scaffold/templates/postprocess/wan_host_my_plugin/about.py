"""The file that is made of an asset: ``media.path`` is what was encoded, ``media.clip`` its frames, if they are still there."""

from __future__ import annotations

import hashlib
import json

from wan_host import DerivedFile, HookContext, Media

_CHUNK = 1 << 20


def describe(media: Media, context: HookContext) -> DerivedFile:
    """Write what was measured on the asset, and its SHA-256, into the job's folder."""
    digest = hashlib.sha256()
    with media.path.open("rb") as asset:
        while chunk := asset.read(_CHUNK):
            context.check()  # ends here when the job was cancelled or its time is up
            digest.update(chunk)
    names = ("kind", "format", "width", "height", "frames", "fps", "duration", "file_size_bytes", "seed")
    about = {name: getattr(media, name) for name in names} | {"sha256": digest.hexdigest()}
    path = context.workdir / f"{media.asset_index}.about.json"
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return DerivedFile(asset_index=media.asset_index, role="about", path=path, content_type="application/json")
