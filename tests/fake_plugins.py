"""Distributions that exist for one test: a module and the ``.dist-info`` folder that announces it."""

from __future__ import annotations

import importlib.metadata
import sys
import textwrap

import pytest


class FakeEnvironment:
    """A folder on ``sys.path`` whose distributions are the only ones that are found."""

    def __init__(self, folder):
        self.folder = folder
        self.modules = []

    def add(self, name, code, *, distribution=None, version="1.2.3", module=None, entry_point=None, metadata=True, requires=()):
        """Install a plugin called ``name`` from the source of its module."""
        module = module or f"fake_{name.replace('-', '_')}"
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        distribution = distribution or f"wan-host-{name}"
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata:
            text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            text += "".join(f"Requires-Dist: {line}\n" for line in requires)
            (info / "METADATA").write_text(text, encoding="utf-8")
        announced = f"[wan_host]\n{name} = {module}\n" if entry_point is None else entry_point
        (info / "entry_points.txt").write_text(announced, encoding="utf-8")
        return module


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment without plugins, to be filled by the test."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    found = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: found(path=[str(folder)]))
    fake = FakeEnvironment(folder)
    yield fake
    for module in fake.modules:
        sys.modules.pop(module, None)
