"""The specifications of the hooks: documented, typed, with examples that are Python, and used."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from wan_host import hookspecs
from wan_host.plugins import HOOK_NAMES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "plugins.md"


def test_the_headings_of_the_hooks_are_their_signatures():
    headings = re.findall(r"^### `(.+)`\s*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    signatures = [f"{name}({', '.join(inspect.signature(getattr(hookspecs, name)).parameters)})" for name in HOOK_NAMES]
    assert headings == signatures


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_a_hook_says_when_it_is_called_and_shows_a_short_example_that_is_python(name):
    text = inspect.getdoc(getattr(hookspecs, name))
    assert "Called " in text
    example = textwrap.dedent(text[text.index("    @hookimpl") :])
    (function,) = ast.parse(example).body
    assert function.name == name
    known = list(inspect.signature(getattr(hookspecs, name)).parameters)
    assert [argument.arg for argument in function.args.args] == known
    assert len(function.body) <= 2


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_a_hook_is_used_in_a_test_other_than_this_one(name):
    tests = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "plugins").glob("*/tests/test_*.py")]
    assert [path for path in tests if path.name != Path(__file__).name and re.search(rf"\b{name}\b", path.read_text("utf-8"))]


def test_every_hook_has_types_for_what_it_takes_and_returns():
    for name in HOOK_NAMES:
        signature = inspect.signature(getattr(hookspecs, name))
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
