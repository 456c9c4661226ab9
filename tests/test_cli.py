"""The command line: quick to start, and what plugins add or break in it."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
import structlog
from click.testing import CliRunner

from wan_host import cli
from wan_host.cli.extensions import plugin_commands
from wan_host.cli.setup import check_publisher, prepare_hooks, prepare_settings
from wan_host.errors import SettingsError
from wan_host.testing import instant

SCRIPT = Path(sys.executable).with_name("wan-host")
COMMANDS = ["run", "generate", "submit", "jobs", "workers", "models", "plugins", "plugin", "doctor"]
MODULES_AFTER = """
import sys
from wan_host.cli import cli
cli.main(args={arguments!r}, prog_name="wan-host", standalone_mode=False)
print("MODULES", *sys.modules)
"""


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """A data folder of its own, no settings of this machine, logging as it was, no remembered plugins."""
    for name in [name for name in os.environ if name.startswith("WAN_HOST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    plugin_commands.cache_clear()
    yield
    plugin_commands.cache_clear()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def invoke(*arguments, code=0):
    result = CliRunner().invoke(cli.cli, arguments, prog_name="wan-host")
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def modules_after(*arguments):
    code = MODULES_AFTER.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, set(done.stdout.rsplit("MODULES", 1)[1].split())


def cpu_seconds(*command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# Start ----------------------------------------------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_pydantic_nor_rich():
    output, modules = modules_after("--help")
    assert all(name in output for name in COMMANDS)
    heavy = {"torch", "diffusers", "transformers", "pydantic", "rich", "numpy", "httpx", "structlog", "pluggy"}
    assert not heavy & modules


@pytest.mark.parametrize("arguments", [("plugins",), ("plugins", "--json"), ("models", "list"), ("models", "--help")])
def test_listing_imports_every_plugin_but_no_torch(arguments):
    _, modules = modules_after(*arguments)
    assert {"wan_host_wan21", "wan_host_thumbnail", "wan_host_tiny_wan"} <= modules
    assert not {"torch", "diffusers", "transformers", "accelerate", "peft"} & modules


def test_help_costs_at_most_twice_what_click_costs():
    """The least of several runs, in turns: what else the machine does only ever adds."""
    ours, clicks = [], []
    for _ in range(3):
        for _ in range(7):
            ours.append(cpu_seconds(SCRIPT, "--help"))
            clicks.append(cpu_seconds(sys.executable, "-c", "import click"))
        if min(ours) <= 2 * min(clicks):
            break
    assert min(ours) <= 2 * min(clicks)


def test_the_list_of_commands_is_what_there_is():
    assert list(cli._COMMANDS) == COMMANDS
    for name in COMMANDS:
        assert isinstance(cli.cli.get_command(click.Context(cli.cli), name), click.Command)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    assert "Usage: wan-host " + name in invoke(name, "--help")


def test_the_version_is_shown():
    assert invoke("--version").startswith("wan-host 0.")


def test_the_module_can_be_run_too():
    done = subprocess.run([sys.executable, "-m", "wan_host", "--version"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("wan-host 0.")


def test_an_unknown_command_is_a_usage_error(environment):
    assert "No such command 'jbos'" in CliRunner().invoke(cli.cli, ["jbos"]).output


def test_an_expected_error_is_one_line_and_exit_status_one(monkeypatch):
    done = subprocess.run(
        [SCRIPT, "plugins"], capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "WAN_HOST_PORT": "x"}
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("wan-host: WAN_HOST_PORT: 'x' is not allowed; ")


# Plugins --------------------------------------------------------------------------------------------------------------

OFFERS = """
from wan_host import hookimpl, ModelInfo

@hookimpl
def list_models():
    return [
        ModelInfo(name="[bold]m", family="wan", runner="good", path="/a/[red]/b"),
        ModelInfo(name="lost", family="wan", runner="gone"),
    ]
"""


def test_plugins_are_listed_whole_with_what_is_wrong_with_them(environment, monkeypatch):
    environment.add("good", OFFERS, distribution="a-distribution-with-a-long-name-that-must-not-be-cut")
    environment.add("bad", "raise ValueError('[/red] broken')")
    environment.add("off", "")
    monkeypatch.setenv("WAN_HOST_DISABLED_PLUGINS", "off")
    monkeypatch.setenv("WAN_HOST_REQUIRED_PLUGINS", "missing")
    output = invoke("plugins")
    assert "a-distribution-with-a-long-name-that-must-not-be-cut" in output
    assert "[bold]m" in output
    assert "bad (wan-host-bad 1.2.3): ValueError: [/red] broken" in output.splitlines()
    assert "model lost: its runner, the plugin 'gone', is not installed or does not work" in output.splitlines()
    assert "plugin missing is required (WAN_HOST_REQUIRED_PLUGINS) but not installed" in output.splitlines()
    assert all(status in output for status in ("ok", "quarantined", "disabled"))


def test_plugins_are_listed_for_machines(environment):
    environment.add("good", OFFERS)
    environment.add("bad", "import nowhere_to_be_found")
    rows = {row["name"]: row for row in json.loads(invoke("plugins", "--json"))}
    assert set(rows) == {"local", "log", "good", "bad"}
    assert rows["good"] == {
        "name": "good",
        "distribution": "wan-host-good",
        "version": "1.2.3",
        "status": "ok",
        "error": "",
        "hooks": ["list_models"],
        "models": ["[bold]m", "lost"],
        "builtin": False,
    }
    assert rows["local"]["builtin"] is True
    assert rows["bad"]["error"].startswith("ModuleNotFoundError: ")


def test_a_plugin_whose_commands_fail_is_shown_as_such(environment):
    environment.add("bad", "from wan_host import hookimpl\n@hookimpl\ndef add_commands():\n    raise OSError('no commands')")
    (row,) = [row for row in json.loads(invoke("plugins", "--json")) if row["name"] == "bad"]
    assert (row["status"], row["error"]) == ("quarantined", "OSError: no commands")


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_are_listed_with_the_default_one_and_the_orphans(environment):
    environment.add("good", OFFERS)
    output = invoke("models", "list")
    assert "[bold]m (default)" in output
    assert "/a/[red]/b" in output
    assert "model lost: its runner, the plugin 'gone'" in output


def test_where_no_model_is_the_default_the_list_says_so(environment, monkeypatch):
    environment.add("good", OFFERS.replace("gone", "good"))
    assert "set WAN_HOST_MODEL" in invoke("models", "list")
    monkeypatch.setenv("WAN_HOST_MODEL", "typo")
    assert "WAN_HOST_MODEL: 'typo' is offered by no installed plugin" in invoke("models", "list")


# Commands of plugins --------------------------------------------------------------------------------------------------

COMMANDS_OF = """
import click
from wan_host import PluginCommand, hookimpl

@hookimpl
def add_commands():
    @click.command()
    def pull():
        click.echo("pulled by {name}")

    @click.command()
    def {name}():
        click.echo("top level of {name}")

    @click.command()
    def plugins():
        click.echo("hijacked")

    return [PluginCommand(command=pull, group="models"), PluginCommand(command={name}), PluginCommand(command=plugins)]
"""


def test_plugins_add_commands_to_a_group_and_to_the_top(environment):
    environment.add("alpha", COMMANDS_OF.format(name="alpha"))
    assert invoke("models", "pull") == "pulled by alpha\n"
    assert invoke("alpha") == "top level of alpha\n"
    assert "pull" in invoke("models", "--help")
    assert "list" in invoke("models", "--help")


def test_the_hosts_own_commands_cannot_be_taken_and_the_first_plugin_has_a_name(environment):
    environment.add("alpha", COMMANDS_OF.format(name="alpha"))
    environment.add("beta", COMMANDS_OF.format(name="beta"))
    assert "hijacked" not in invoke("plugins")
    assert invoke("models", "pull") == "pulled by alpha\n"


def test_a_broken_plugin_takes_no_command_of_others_away(environment):
    environment.add("aaa", "raise SystemExit(3)")
    environment.add("abc", "from wan_host import hookimpl\n@hookimpl\ndef add_commands():\n    raise SystemExit(3)")
    environment.add("alpha", COMMANDS_OF.format(name="alpha"))
    assert invoke("alpha") == "top level of alpha\n"


# Setup ----------------------------------------------------------------------------------------------------------------


def test_flags_become_settings_that_lanes_and_plugins_see_too(monkeypatch):
    monkeypatch.setenv("WAN_HOST_PORT", "1")
    monkeypatch.setenv("WAN_HOST_MODEL", "kept")
    settings = prepare_settings({"port": 5, "model": None})
    assert (settings.port, settings.model) == (5, "kept")
    assert os.environ["WAN_HOST_PORT"] == "5"


def test_a_wrong_flag_is_named_like_its_variable(monkeypatch):
    monkeypatch.setenv("WAN_HOST_PORT", "1")
    with pytest.raises(SettingsError, match="WAN_HOST_PORT: '70000' is not allowed"):
        prepare_settings({"port": 70000})


def test_the_callback_is_a_plugin_only_where_a_url_is_set(environment, monkeypatch):
    assert prepare_hooks(prepare_settings()).plugins_with("deliver_report") == ("log",)
    monkeypatch.setenv("WAN_HOST_CALLBACK_URL", "https://receiver/x")
    assert prepare_hooks(prepare_settings()).plugins_with("deliver_report") == ("callback", "log")


def test_a_variable_that_nobody_reads_is_warned_of_with_the_one_that_was_meant(environment, monkeypatch, capsys):
    environment.add("good", OFFERS)
    monkeypatch.setenv("WAN_HOST_QUEUE_ULR", "redis://:hunter2@x")
    monkeypatch.setenv("WAN_HOST_GOOD_THING", "x")
    prepare_hooks(prepare_settings(log_level="warning"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "WAN_HOST_QUEUE_ULR is no setting" in line
    assert "did you mean WAN_HOST_QUEUE_URL?" in line
    assert "hunter2" not in line


def test_a_worker_without_its_publisher_does_not_start(environment, monkeypatch):
    environment.add("supabase", "raise ValueError('broken')")
    monkeypatch.setenv("WAN_HOST_PUBLISHER", "supabase")
    settings = prepare_settings(log_level="error")
    with pytest.raises(SettingsError, match=r"WAN_HOST_PUBLISHER: 'supabase' is no working plugin .* there are: local$"):
        check_publisher(settings, prepare_hooks(settings))
    done = CliRunner().invoke(cli.cli, ["run", "--once"])
    assert isinstance(done.exception, SettingsError)


def test_a_publisher_that_is_there_is_fine(environment):
    settings = prepare_settings(log_level="error")
    check_publisher(settings, prepare_hooks(settings))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lora", "sketch=0.5"), "config.loras: model instant takes no adapters"),
        (("--lora", "sketch=much"), "'sketch=much': 'much' is no number; NAME or NAME=SCALE is expected"),
        (("--lora", "sketch=5"), "config.loras.0.scale"),
        (("--reference-image", "https://example.org/a.png"), "config.reference_images: 1 given, model instant takes at most 0"),
        (("--reference-image", "there-is-none.png"), "'there-is-none.png' is neither a file nor a URL"),
    ],
)
def test_generate_hands_adapters_and_subjects_on(*, options, said, tmp_path, monkeypatch):
    instant.install(tmp_path / "site", {"instant": "wan_host.testing.instant"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    result = CliRunner().invoke(cli.cli, ["generate", "a cat", "--model", "instant", *options])
    assert result.exit_code != 0
    assert said in f"{result.output}{result.exception}"
