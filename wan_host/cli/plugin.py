"""``wan-host plugin``: make a plugin, and test one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from wan_host.scaffold import KINDS


@click.group()
def plugin() -> None:
    """Make a plugin, and test one."""


@plugin.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it does.")
@click.option("--path", help="Where the weights of a model are: a folder in the layout of diffusers, or owner/name@revision.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where its folder is made (here).")
def new(name: str, *, kind: str, path: str | None, into: Path) -> None:
    """Write a plugin into a new folder wan-host-NAME: a distribution with a README and tests that pass."""
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.scaffold import write_plugin

    registry = prepare_hooks(prepare_settings(log_level="warning")).registry
    taken = {record.name.replace("-", "_"): f"the plugin {record.origin}" for record in registry.records}
    taken |= {model: f"the model {model!r} of an installed plugin" for model in registry.models}
    if path is not None and Path(path).expanduser().is_dir():  # what is no folder here is a hub id, or comes later
        path = str(Path(path).expanduser().absolute())
    folder = write_plugin(name, kind, into, path=path, taken=taken)
    for file in sorted(found for found in folder.rglob("*") if found.is_file()):
        click.echo(file)
    module = folder.name.removeprefix("wan-host-").replace("-", "_")
    click.echo(f"\npip install -e '{folder}[dev]'\npython -m pytest {folder}\nwan-host plugin test {module}", err=True)


@plugin.command()
@click.argument("name", required=False)
@click.option("--no-chaos", is_flag=True, help="Leave out the run in which lanes and workers are killed (15 s or so).")
@click.option("--model", help="Model for that run; by default the plugin's own if it is small, else one that costs nothing.")
def test(name: str | None, *, no_chaos: bool, model: str | None) -> None:
    """Test the plugin NAME, or every one that is installed, against the contract of its hooks. Needs no GPU.

    What is missing to test a hook (a model on disk, a store's credentials) is named as skipped. Exit status 1 if a plugin
    breaks the contract.
    """
    from wan_host.cli.setup import prepare_hooks, prepare_settings
    from wan_host.errors import PluginError

    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("psutil") is None:
        raise click.ClickException("this needs pytest and psutil: pip install 'wan-host[testing]'")
    registry = prepare_hooks(prepare_settings(log_level="warning")).registry
    records = {record.name: record for record in registry.records if not record.builtin}
    if name is not None and name not in records:
        raise PluginError(f"no plugin {name!r} is installed; there are: {', '.join(records) or 'none'}")
    if not records:
        raise PluginError("no plugin is installed; `wan-host plugin new` makes one")
    failed = []
    for record in [records[name]] if name is not None else records.values():
        click.secho(f"{record.origin}: {', '.join(record.hooks) or record.status}", bold=True)
        if record.status == "disabled":
            continue
        if not _conforms(record.name, chaos=not no_chaos, model=model):
            failed.append(record.name)
    if failed:
        raise click.ClickException(f"these plugins break the contract of their hooks: {', '.join(failed)}")


def _conforms(name: str, *, chaos: bool, model: str | None) -> bool:
    """Run the tests in a process and a folder of their own, so that no configuration of pytest that lies around has a say."""
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "WAN_HOST_TESTING_PLUGIN": name,
        "WAN_HOST_TESTING_CHAOS": "1" if chaos else "0",
        "WAN_HOST_TESTING_MODEL": model or "",
    }
    with tempfile.TemporaryDirectory(prefix="wan-host-test-") as folder:
        (Path(folder) / "pytest.ini").write_text("[pytest]\naddopts = -q -rs --tb=short -p no:cacheprovider\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-c", f"{folder}/pytest.ini", "--rootdir", folder]
        done = subprocess.run(  # noqa: S603  # our own program
            [*command, "--pyargs", "wan_host.testing.conformance"], env=environment, check=False
        )
    return done.returncode == 0
