"""A new plugin from the files under ``templates``: a distribution that can be installed, and tests that pass.

The templates are plugins named ``my-plugin``; making one copies a folder and puts the new name in place of that one, in file
names and in texts, in each of its spellings.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from wan_host.errors import SettingsError, shown

TEMPLATES = Path(__file__).parent / "templates"
KINDS = ("model", "enhancer", "postprocess", "publisher")
MODEL_PATH = "/models/my-plugin"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST_NAME = 50
_RESERVED = frozenset({"callback", "host", "local", "log", "testing"})


def check_name(name: str, taken: Mapping[str, str]) -> str:
    """Return a plugin's name as Python spells it. Raises SettingsError for one that is not allowed.

    ``taken`` maps the names that are not free to whose they are.
    """
    if not _NAME.fullmatch(name) or not 1 < len(name) <= _LONGEST_NAME:
        raise SettingsError(
            f"NAME: {shown(name)} is not allowed; 2 to {_LONGEST_NAME} small letters and digits, - or _ between words"
        )
    if name.startswith(("wan-host", "wan_host")):
        raise SettingsError(f"NAME: {shown(name)} is not allowed; leave out wan-host, the distribution is named wan-host-NAME")
    module = name.replace("-", "_")
    owner = "the host" if module in _RESERVED else taken.get(module) or taken.get(module.replace("_", "-"))
    if owner is not None:
        raise SettingsError(f"NAME: {shown(name)} is not allowed; the name is taken by {owner}")
    return module


def write_plugin(name: str, kind: str, into: Path, *, path: str | None = None, taken: Mapping[str, str] | None = None) -> Path:
    """Write a plugin of a kind into a new folder ``into/wan-host-<name>`` and return that.

    ``path``: where the weights of a ``model`` are. Raises SettingsError for a name that is not allowed, for a kind that does
    not exist, and where the folder exists already: nothing is ever overwritten.
    """
    module = check_name(name, taken or {})
    if kind not in KINDS:
        raise SettingsError(f"--kind: {shown(kind)} is not allowed; {', '.join(KINDS)} are")
    if path is not None and kind != "model":
        raise SettingsError(f"--path: a plugin of the kind {kind} has no weights; only --kind model takes it")
    dashed = module.replace("_", "-")
    target = into / f"wan-host-{dashed}"
    if target.exists() or target.is_symlink():
        raise SettingsError(f"{target} exists already; nothing was written")
    spellings = {"my_plugin": module, "my-plugin": dashed, "MY_PLUGIN": module.upper()}
    weights = {json.dumps(MODEL_PATH): json.dumps(path), f"`{MODEL_PATH}`": f"`{path}`"} if path is not None else {}
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wan-host-new-", dir=into) as folder:
        whole = Path(folder) / "plugin"
        for source in sorted((TEMPLATES / kind).rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                written = whole / _replaced(str(source.relative_to(TEMPLATES / kind)), spellings)
                written.parent.mkdir(parents=True, exist_ok=True)
                written.write_text(_replaced(source.read_text("utf-8"), weights | spellings), encoding="utf-8")
        whole.rename(target)
    return target


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """Replace all names in one go, the first that fits, so that nothing that was put in is replaced again."""
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)
