"""The Lua scripts, loaded from `scripts/`; each file says its keys, arguments and reply."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Script", "load_script"]


@dataclass(frozen=True)
class Script:
    """A script and the SHA-1 by which the server knows it."""

    name: str
    text: str
    sha: str


@functools.cache
def load_script(name: str) -> Script:
    """Return the script `scripts/<name>.lua`, with `common.lua` in front of it."""
    folder = files("wan_host.queue") / "scripts"
    text = (folder / "common.lua").read_text("utf-8") + "\n" + (folder / f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
