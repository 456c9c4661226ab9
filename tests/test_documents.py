"""What the documents show is true: their commands exist, their code runs, their tables are complete."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import click
import pytest

from wan_host.cli import cli
from wan_host.errors import WanHostError
from wan_host.lanes.process import HOST_ONLY
from wan_host.payload import parse_payload
from wan_host.settings import Settings

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in PAGES)
RUN_BY = {  # a command's beginning, and the test that runs it or the steps behind it
    "make demo": "tests/end_to_end/test_fresh_clone.py",
    'wan-host generate "a red circle moves': "tests/end_to_end/test_fresh_clone.py",
    "wan-host run": "tests/end_to_end/test_worker.py",
    "wan-host models import": "plugins/wan21/tests/test_native.py",
    "wan-host models pull": "plugins/wan21/tests/test_pull.py",
    "wan-host plugin new": "tests/test_scaffold.py",
    "wan-host plugin test": "tests/test_scaffold.py",
    "docker build": "tests/deploy/test_dockerfile.py",
    "wan-host ": "tests/end_to_end/test_documents.py",
    "redis-cli RPUSH": "tests/end_to_end/test_documents.py",
    "curl -sS https://POD-": "tests/end_to_end/test_documents.py",
    "curl -sS -o first.mp4 https://POD-": "tests/end_to_end/test_documents.py",
    'curl -sS "$UPSTASH_REDIS_REST_URL"': "tests/end_to_end/test_documents.py",
}
NOT_RUN = {  # a command's beginning, and why no test runs it
    "make test": "it is what runs the tests",
    "make lint": "ruff and mypy take longer than a test may; .ci/run runs it",
    "docker push": "needs a registry",
    "docker compose": "needs Docker; the file is checked against the compose specification",
    "kubectl apply": "needs a cluster; the manifest is checked against Kubernetes' and KEDA's types",
    "supabase ": "needs a project at Supabase; functions and table are run by tests",
    "curl -sS https://rest.runpod.io/": "needs an account at RunPod; what is sent is checked by tests/deploy",
}

RUN_AS_A_WHOLE = {"docs/custom-model.md": "tests/end_to_end/test_custom_model.py"}


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
        found, rest = cli, arguments
        while isinstance(found, click.Group):
            context = found.make_context(found.name or "wan-host", [*rest[:1], "--help"], resilient_parsing=True)
            name, found, rest = found.resolve_command(context, rest)
            assert found is not None, name
        options = {option for parameter in found.params for option in parameter.opts}
        assert {argument for argument in rest if argument.startswith("--")} <= options
    elif program == "redis-cli":
        assert arguments[:2] == ["RPUSH", "wan_queue"]
        assert parse_payload(arguments[2]).id
    elif program == "curl":
        sent = [json.loads(value) for option, value in pairwise(arguments) if option == "-d" and not value.startswith("@")]
        files = [value[1:] for option, value in pairwise(arguments) if option == "-d" and value.startswith("@")]
        assert all((ROOT / name).is_file() for name in files)
        assert all(parse_payload(item[2]).id for item in sent if isinstance(item, list))
    else:
        assert program in {"docker", "kubectl", "supabase"}, f"nothing is known of {program}"
        named = [argument for argument in arguments if argument.startswith("deploy/")]
        assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_run_by_a_test_or_listed_with_the_reason_why_not(command):
    runs = [test for start, test in RUN_BY.items() if command.startswith(start)]
    reasons = [reason for start, reason in NOT_RUN.items() if command.startswith(start)]
    assert bool(runs) != bool(reasons), "put it into RUN_BY or NOT_RUN"
    assert all((ROOT / test).is_file() for test in runs)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scripts_stand_only_in_a_document_that_a_test_runs_from_start_to_end(document):
    if any(blocks(document, language) for language in ("sh", "bash", "shell")):
        assert Path(document).name in (ROOT / RUN_AS_A_WHOLE[document]).read_text()


def test_no_command_is_listed_that_no_document_has():
    assert [start for start in {**RUN_BY, **NOT_RUN} if not any(command.startswith(start) for command in all_commands())] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document):
    folder = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", (ROOT / document).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_no_setting_that_is_not_there(document):
    there = set(re.findall(r"\b(WAN_HOST_[A-Z0-9_]+)", (ROOT / "docs" / "operations.md").read_text()))
    for page in (ROOT / "plugins").glob("*/README.md"):
        there |= set(re.findall(r"\b(WAN_HOST_[A-Z0-9_]+)", page.read_text()))
    named = set(re.findall(r"\b(WAN_HOST_[A-Z0-9_]*[A-Z0-9])\b(?!_)", (ROOT / document).read_text()))
    assert named <= there


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


def test_what_lanes_do_not_get_is_documented():
    section = (ROOT / "docs" / "operations.md").read_text().split("## Secrets")[1].split("\n## ")[0]
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", section)) == HOST_ONLY


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


def test_every_metric_and_every_alert_is_documented():
    from tests.deploy.monitoring import alerts, metric_labels

    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|([^|]*)\|", text, re.MULTILINE)
    names = {name: cells for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    families = {re.sub(r"_(bucket|sum|count)$", "", name): labels for name, labels in metric_labels().items()}
    described = {name: set(re.findall(r"`(\w+)`", cells[1])) for name, cells in names.items() if name.startswith("wan_host_")}
    assert described == families
    severities = {name: cells[1].strip() for name, cells in names.items() if name.startswith("WanHost")}
    assert severities == {rule["alert"]: rule["labels"]["severity"] for rule in alerts()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_file_that_a_document_names_is_there(document):
    named = re.findall(r"`((?:tests|deploy|docs|benchmarks|plugins|wan_host)/[\w./-]+)`", (ROOT / document).read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
