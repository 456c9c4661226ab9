"""What the documents show is true: their commands exist, their code runs, their tables are complete."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wan_host.cli import cli
from wan_host.errors import WanHostError
from wan_host.payload import parse_payload
from wan_host.settings import Settings

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def blocks(document: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall((ROOT / document).read_text()) if found == language]


def commands(document: str) -> list[str]:
    return [line for body in blocks(document, "console") for line in body.splitlines() if line.strip()]


def all_commands() -> list[str]:
    return sorted({command for document in DOCUMENTS for command in commands(document)})


@pytest.mark.parametrize("command", all_commands())
def test_every_command_in_a_document_exists(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "wan-host":
        context = cli.make_context("wan-host", [*arguments[:1], "--help"], resilient_parsing=True)
        name, found, rest = cli.resolve_command(context, arguments)
        assert found is not None, name
        options = {option for parameter in found.params for option in parameter.opts}
        assert {argument for argument in rest if argument.startswith("--")} <= options
    elif program == "redis-cli":
        assert arguments[:2] == ["RPUSH", "wan_queue"]
        assert parse_payload(arguments[2]).id
    else:
        pytest.fail(f"no test runs {program}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_plugin_examples_are_whole_plugins_that_offer_a_model(document, tmp_path):
    for number, body in enumerate(body for body in blocks(document, "python") if body.startswith('"""my_')):
        module = tmp_path / f"example_{number}.py"
        module.write_text(body + "\nprint([model.name for model in list_models()])\n")
        printed = subprocess.run([sys.executable, module], capture_output=True, text=True, check=True).stdout
        assert json.loads(printed.replace("'", '"'))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_toml_examples_are_toml(document):
    for body in blocks(document, "toml"):
        tomllib.loads(body)


def test_the_readmes_plugin_has_at_most_fifteen_lines():
    (plugin,) = [body for body in blocks("README.md", "python") if "hookimpl" in body]
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 15


def test_the_readmes_file_tree_names_what_is_there():
    (tree,) = re.findall(r"^```\n(wan_host/ .*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        for name in names:
            folder = ROOT / "wan_host" if line.startswith("  ") else ROOT
            assert (folder / name).exists(), f"{name} is in the README but not in the repository"


def test_the_readmes_file_tree_names_every_plugin():
    listed = set(re.findall(r"^plugins/(\w+)/", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}


def test_every_setting_is_documented_and_nothing_else():
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[: text.index("## Starting and stopping")]
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table)) - {"WAN_HOST_CONFIG"}
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names.add(alias.choices[0] if alias is not None else f"WAN_HOST_{name.upper()}")
    assert documented == names


def test_every_error_type_is_documented():
    from wan_host import errors

    text = (ROOT / "docs" / "architecture.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", text[text.index("## Errors") : text.index("## Imports")])) - {"error_type"}
    leaves = {
        cls.error_type
        for name in errors.__all__
        if issubclass(cls := getattr(errors, name), WanHostError) and not cls.__subclasses__()
    }
    unreported = {"lease_lost", "settings", "plugin"}
    assert documented - {"internal"} == leaves - unreported
