"""Which versions of each other host and plugins work with: declared by distributions, checked before a plugin is imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wan_host.errors import PluginError

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

HOST = "wan-host"


def host_range(distribution: importlib.metadata.Distribution) -> SpecifierSet | None:
    """Return the versions of the host that a distribution asks for, None where it does not ask."""
    return next((wanted.specifier for wanted in _requirements(distribution) if _name(wanted.name) == HOST), None)


def check_ranges(distribution: importlib.metadata.Distribution, versions: Mapping[str, str]) -> None:
    """Raise PluginError where the host or a plugin that a distribution requires is missing or has another version.

    ``versions``: what is installed, the host and every distribution with plugins, by name. Other requirements are pip's affair.
    """
    installed = {_name(name): version for name, version in versions.items()}
    for wanted in _requirements(distribution):
        name = _name(wanted.name)
        if name not in installed and not name.startswith(f"{HOST}-"):
            continue
        if name not in installed:
            raise PluginError(f"it needs {wanted.name}{wanted.specifier}, which is not installed: pip install '{wanted}'")
        if not wanted.specifier.contains(installed[name], prereleases=True):
            raise PluginError(
                f"it needs {wanted.name}{wanted.specifier}, and {installed[name]} is installed: "
                f"pip install --upgrade {distribution.name} {wanted.name}"
            )


def _requirements(distribution: importlib.metadata.Distribution) -> list[Requirement]:
    """Return what a distribution requires of host and plugins here; what cannot be read is an error."""
    lines = [line for line in distribution.requires or () if _name(line).startswith(HOST)]
    if not lines:
        return []
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise PluginError(
                f"its metadata requires {line[:100]!r}, which cannot be read: {str(error).splitlines()[0]}"
            ) from None
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            found.append(wanted)
    return found


def _name(text: str) -> str:
    """Return a distribution's name as names are compared."""
    return text.strip().lower().replace("_", "-").replace(".", "-")
