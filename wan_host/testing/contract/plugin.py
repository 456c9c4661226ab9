"""What holds for every plugin, and for those that offer models or commands."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping

import click
import pytest
from click.testing import CliRunner

from wan_host import __version__
from wan_host.cli import cli
from wan_host.hooks import Hooks
from wan_host.hookspecs import PluginCommand
from wan_host.job import JobPolicy, resolve_job
from wan_host.model import ModelInfo
from wan_host.payload import parse_payload
from wan_host.plugins import ENTRY_POINT_GROUP
from wan_host.ranges import host_range
from wan_host.testing.contract.base import Contract

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "tensorflow", "jax")
_LOAD = """
import sys
from importlib.metadata import entry_points
(point,) = entry_points(group={group!r}, name={name!r})
plugin = point.load()
if hasattr(plugin, "list_models"):
    list(plugin.list_models())
print(*(name for name in {heavy!r} if name in sys.modules))
"""


class PluginContract(Contract):
    """Every plugin: found, light, and sure of which host it works with."""

    def test_it_is_found_and_keeps_to_the_rules_of_hooks(self, hooks: Hooks) -> None:
        """It is installed, and not quarantined."""
        (record,) = (record for record in hooks.registry.records if record.name == self.plugin)
        assert record.status == "ok", record.error
        assert record.hooks

    def test_importing_it_and_listing_its_models_imports_nothing_heavy(self) -> None:
        """Every command and every lane imports all plugins: torch belongs inside functions."""
        code = _LOAD.format(group=ENTRY_POINT_GROUP, name=self.plugin, heavy=HEAVY)
        done = subprocess.run(  # noqa: S603  # our own program
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []

    def test_its_distribution_says_which_versions_of_the_host_it_works_with(self) -> None:
        """A range with an upper end, such as ``wan-host>=0.1,<0.2``, and this host is in it."""
        (point,) = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=self.plugin)
        assert point.dist is not None
        wanted = host_range(point.dist)
        assert wanted is not None, f"{point.dist.name} does not require wan-host: add a range to its dependencies"
        assert any(part.operator in {"<", "<=", "~=", "=="} for part in wanted), f"wan-host{wanted} has no upper end"
        assert wanted.contains(__version__, prereleases=True), f"wan-host{wanted} does not hold this host, {__version__}"


class ModelContract(Contract):
    """``list_models``: metadata that jobs can be resolved with."""

    @pytest.fixture
    def models(self, hooks: Hooks) -> Mapping[str, ModelInfo]:
        """Return the models that the plugin offers; where that depends on settings, set them before (``autouse``)."""
        (record,) = (record for record in hooks.registry.records if record.name == self.plugin)
        if not record.models:
            self.missing("it offers no model here")
        orphans = {name: why for name, why in hooks.registry.orphans.items() if name in record.models}
        assert orphans == {}, "models whose runner is missing"
        return {name: hooks.models()[name] for name in record.models}

    def test_every_job_type_works_with_its_own_defaults(self, models: Mapping[str, ModelInfo]) -> None:
        """A payload that gives nothing but its type and prompt is a job."""
        for model in models.values():
            assert model.job_types or model.kind == "enhance", f"{model.name} serves no job type"
            for name, defaults in model.job_types.items():
                payload = {"id": "job", "type": name, "prompt": "a red circle", "user_id": "user"}
                policy = JobPolicy(default_model=model.name)
                job = resolve_job(parse_payload(json.dumps(payload)), models={model.name: model}, policy=policy, seed=7)
                assert (job.type, job.request.media, job.enhance) == (name, defaults.media, defaults.enhance)

    def test_a_generating_model_has_a_family_and_a_runner_that_generates(
        self, models: Mapping[str, ModelInfo], hooks: Hooks
    ) -> None:
        """``/health`` shows models by family, and jobs go to the runner."""
        for model in models.values():
            assert model.family, f"{model.name} has no family"
            needed = "generate" if model.kind == "generate" else "enhance_prompt"
            assert model.runner in hooks.plugins_with(needed), f"{model.runner} has no hook {needed}"
            assert model.runner in hooks.plugins_with("load_model"), f"{model.runner} has no hook load_model"

    def test_metadata_crosses_process_borders_unchanged(self, models: Mapping[str, ModelInfo]) -> None:
        """Host and lanes are different processes."""
        for model in models.values():
            assert pickle.loads(pickle.dumps(model)) == model  # noqa: S301  # our own bytes

    def test_host_and_lanes_are_offered_the_same(self, models: Mapping[str, ModelInfo]) -> None:
        """Each of them asks for itself."""
        again = self.installed_hooks().models()
        assert {name: again[name] for name in models} == models


class CommandContract(Contract):
    """``add_commands``: commands that explain themselves and take no name of the host's."""

    @pytest.fixture
    def commands(self, hooks: Hooks) -> list[PluginCommand]:
        """Return the plugin's commands."""
        others = [record for record in hooks.registry.records if record.name != self.plugin]
        for record in others:
            hooks.registry.disable(record)
        found = hooks.add_commands()
        (record,) = (record for record in hooks.registry.records if record.name == self.plugin)
        assert record.status == "ok", record.error
        return found

    def test_every_command_has_a_name_and_explains_itself(self, commands: list[PluginCommand]) -> None:
        """``--help`` works and says what the command is for."""
        assert commands
        for offered in commands:
            assert offered.command.name
            assert offered.command.get_short_help_str(), f"{offered.command.name} has no help"
            done = CliRunner().invoke(offered.command, ["--help"])
            assert done.exit_code == 0, done.output

    def test_no_command_hides_behind_one_of_the_host(self, commands: list[PluginCommand]) -> None:
        """The host's own commands cannot be taken, so that one of the same name would never be called."""
        context = click.Context(cli)
        for offered in commands:
            group = cli.get_command(context, offered.group) if offered.group else cli
            assert isinstance(group, click.Group), f"there is no group {offered.group!r}"
            own = cli.list_commands(context) if group is cli else list(group.commands)
            assert offered.command.name not in own
