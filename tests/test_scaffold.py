"""`wan-host plugin new`: plugins that work as they are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wan_host.errors import SettingsError
from wan_host.scaffold import KINDS, TEMPLATES, write_plugin

PLACEHOLDER = re.compile(r"my.plugin", re.IGNORECASE)


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def run(*command, environment):
    return subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One plugin of each kind, written by the command and installed into a folder on the path."""
    folder = tmp_path_factory.mktemp("made")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WAN_HOST_")}
    environment = {**plain, "WAN_HOST_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(folder / "site")}
    for kind in KINDS:
        done = run("wan_host", "plugin", "new", f"new-{kind}", "--kind", kind, "--into", str(folder), environment=environment)
        assert done.returncode == 0, done.stderr
        assert f"pip install -e '{folder}/wan-host-new-{kind}[dev]'" in done.stderr
    sources = [str(folder / f"wan-host-new-{kind}") for kind in KINDS]
    pip = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site"))
    done = run(*pip, *sources, environment=environment)
    assert done.returncode == 0, done.stderr
    return folder, environment


@pytest.mark.parametrize("kind", KINDS)
def test_no_trace_of_the_template_is_left(made, kind):
    for name, text in files(made[0] / f"wan-host-new-{kind}").items():
        assert not PLACEHOLDER.search(name + text), name


def test_new_plugins_are_found_with_their_hooks_and_models(made):
    rows = {row["name"]: row for row in json.loads(run("wan_host", "plugins", "--json", environment=made[1]).stdout)}
    assert {name: (row["status"], row["models"]) for name, row in rows.items() if name.startswith("new_")} == {
        "new_model": ("ok", ["new-model"]),
        "new_enhancer": ("ok", ["new-enhancer"]),
        "new_postprocess": ("ok", []),
        "new_publisher": ("ok", []),
    }


def test_new_plugins_pass_their_own_tests_at_once(made):
    folder, environment = made
    tests = [str(folder / f"wan-host-new-{kind}" / "tests") for kind in KINDS]
    strict = ("-c", str(folder / "wan-host-new-model" / "pyproject.toml"), "-q", "-W", "error", "-p", "no:cacheprovider")
    done = run("pytest", *strict, *tests, environment={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40
    assert "skipped" not in done.stdout.replace("1 skipped", ""), "of an enhancer that is done at once no cancel is tested"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_new_plugins_stand_a_run_of_chaos(made, kind, tmp_path):
    environment = {**made[1], "WAN_HOST_NEW_PUBLISHER_FOLDER": str(tmp_path)}
    done = run("wan_host", "plugin", "test", f"new_{kind}", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"lanes killed: [12], workers: 1;", done.stdout)


def test_the_weights_of_a_model_may_be_named(tmp_path):
    folder = write_plugin("mine", "model", tmp_path, path='/data/"my-plugin" models')
    texts = files(folder)
    assert 'path: str = "/data/\\"my-plugin\\" models"' in texts["wan_host_mine/settings.py"]
    assert '`/data/"my-plugin" models`' in texts["README.md"]


@pytest.mark.parametrize(
    "name", ["", "a", "A", "Ab", "ab cd", "ab--cd", "-ab", "ab-", "1ab", "ab/cd", "../ab", "ä1", "x" * 51, "ab\n"]
)
def test_a_name_that_is_not_allowed_is_refused(tmp_path, name):
    with pytest.raises(SettingsError, match=r"^NAME: .* is not allowed; 2 to 50 small letters and digits"):
        write_plugin(name, "model", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="leave out wan-host, the distribution is named wan-host-NAME"):
        write_plugin("wan-host-mine", "model", tmp_path)
    with pytest.raises(SettingsError, match="the name is taken by the host"):
        write_plugin("local", "publisher", tmp_path)
    done = run("wan_host", "plugin", "new", "tiny-wan", "--kind", "model", "--into", str(tmp_path), environment=dict(os.environ))
    assert done.returncode == 1
    assert re.match(r"wan-host: NAME: 'tiny-wan' is not allowed; the name is taken by the plugin tiny_wan \(.*\)\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    folder = write_plugin("mine", "publisher", tmp_path)
    (folder / "README.md").write_text("changed")
    with pytest.raises(SettingsError, match=r"wan-host-mine exists already; nothing was written"):
        write_plugin("mine", "model", tmp_path)
    assert (folder / "README.md").read_text() == "changed"
    assert [path.name for path in tmp_path.iterdir()] == ["wan-host-mine"]


def test_a_folder_that_is_here_is_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    done = run("wan_host", "plugin", "new", "mine", "--kind", "model", "--path", "weights", environment=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert f'path: str = "{tmp_path}/weights"' in files(tmp_path / "wan-host-mine")["wan_host_mine/settings.py"]


def test_weights_belong_to_models(tmp_path):
    with pytest.raises(SettingsError, match="only --kind model takes it"):
        write_plugin("mine", "publisher", tmp_path, path="/x")


def test_every_template_has_what_a_distribution_needs():
    for kind in KINDS:
        names = files(TEMPLATES / kind).keys()
        assert {"README.md", "pyproject.toml", "tests/test_contract.py", "wan_host_my_plugin/__init__.py"} <= names
    assert sorted(path.name for path in TEMPLATES.iterdir()) == sorted(KINDS)
    assert not Path(TEMPLATES / "__init__.py").exists()
