"""What all contracts share: the plugin that is tested, and how it is found."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, NoReturn, TypeVar

import pytest

from wan_host.hooks import Hooks
from wan_host.plugins import discover

T = TypeVar("T")
AT_ONCE = 4
"""Calls at the same time in tests of that: jobs share the hooks of the host process."""


class Contract:
    """Base of the contracts: set ``plugin`` to the name of the plugin's entry point."""

    plugin: ClassVar[str]
    configured: ClassVar[bool] = True
    """False where nobody has prepared what the plugin needs: what is missing skips a test, with the reason, and fails none."""

    @pytest.fixture
    def hooks(self) -> Hooks:
        """Return the hooks of all installed plugins; override it for one that is not installed."""
        return self.installed_hooks()

    @classmethod
    def installed_hooks(cls) -> Hooks:
        """Find the installed plugins. Fails where the plugin is not among them or does not work."""
        registry = discover()
        records = {record.name: record for record in registry.records}
        if cls.plugin not in records:
            pytest.fail(f"no plugin {cls.plugin!r} is installed (pip install -e .); there are: {', '.join(records) or 'none'}")
        record = records[cls.plugin]
        if record.status != "ok":
            pytest.fail(f"{record.origin} is {record.status}: {record.error}")
        return Hooks(registry)

    @classmethod
    def missing(cls, why: str) -> NoReturn:
        """End a test that lacks what it needs."""
        if cls.configured:
            pytest.fail(why)
        pytest.skip(why)


def at_once(work: Callable[[int], T]) -> list[T]:
    """Call ``work`` with 0, 1, 2... in threads at the same time; raise what any of them raised."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(work, range(AT_ONCE)))
