"""What plugins import: the names of ``wan_host`` and what they cost."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import wan_host


def test_every_name_resolves_to_what_its_module_defines():
    assert len(set(wan_host.__all__)) == len(wan_host.__all__)
    for name in wan_host.__all__:
        value = getattr(wan_host, name)
        if name != "__version__":
            module = importlib.import_module(f"wan_host.{wan_host._HOME[name]}")
            assert value is getattr(module, name)


def test_the_names_for_type_checkers_are_those_of_the_table():
    tree = ast.parse(Path(wan_host.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {alias.name: node.module.removeprefix("wan_host.") for node in block.body for alias in node.names}
    assert declared == wan_host._HOME


def test_the_public_errors_are_those_that_plugins_meet():
    public = {name for name, module in wan_host._HOME.items() if module == "errors"}
    errors = importlib.import_module("wan_host.errors")
    host_only = set(errors.__all__) - public
    assert host_only == {
        "AttemptsExhausted",
        "EncodingFailed",
        "LaneCrashed",
        "LaneHung",
        "LeaseLost",
        "PostprocessFailed",
        "QueueUnavailable",
        "UnknownModel",
    }


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'wan_host' has no attribute 'nonsense'"):
        _ = wan_host.nonsense
    assert not hasattr(wan_host, "__path_that_is_not_there__")


def test_names_are_shown_before_they_are_used():
    assert set(wan_host.__all__) <= set(dir(wan_host))


def test_importing_the_package_imports_none_of_its_modules():
    code = "import sys, wan_host; print(*(m for m in sys.modules if m.startswith('wan_host.')), 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["False"]


def test_importing_every_name_but_the_base_of_settings_imports_nothing_heavy():
    code = """
import sys, wan_host
for name in wan_host.__all__:
    if wan_host._HOME.get(name) != "plugin_settings":
        getattr(wan_host, name)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    heavy = {"torch", "diffusers", "transformers", "fastapi", "redis", "httpx", "pydantic", "PIL", "numpy", "structlog", "click"}
    assert not heavy & set(done.stdout.split())
