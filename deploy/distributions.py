"""What an image installs: ``folders`` prints the distributions' folders, ``requirements`` what they need from the index.

Needs nothing but Python, and runs before anything is installed: ``python3 distributions.py requirements wan21 thumbnail``.
Without names it is every plugin. A plugin that needs another one of this repository brings it along.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
OWN = re.compile(r"wan-host(?:-(?P<plugin>[a-z0-9-]+))?\b")


def dependencies(folder: Path) -> list[str]:
    """Return what a distribution declares that it needs."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def chosen(names: list[str]) -> list[Path]:
    """Return the folders of the host and of these plugins. Exits with a line that names what there is for an unknown one."""
    there = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    wanted, found = list(names or there), []
    while wanted:
        name = wanted.pop(0)
        if name not in there:
            sys.exit(f"PLUGINS: {name!r} is not in plugins/; there are {', '.join(there)}")
        if name in found:
            continue
        found.append(name)
        own = (OWN.match(needed) for needed in dependencies(ROOT / "plugins" / name))
        wanted += [match["plugin"].replace("-", "_") for match in own if match and match["plugin"]]
    return [ROOT, *(ROOT / "plugins" / name for name in sorted(found))]


def main(what: str, *names: str) -> None:
    """Print one line per folder or requirement."""
    folders = chosen(list(names))
    if what == "folders":
        lines = [str(folder) for folder in folders]
    else:
        lines = sorted({needed for folder in folders for needed in dependencies(folder) if not OWN.match(needed)})
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
