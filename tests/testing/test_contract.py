"""The contract finds what is wrong with a plugin, and says so to people who run `wan-host plugin test`."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from wan_host.testing import instant

HEAD = """
import dataclasses, json, numpy, os, time
from pathlib import Path
from wan_host import *
from wan_host import hookimpl
from wan_host.testing import instant as base
CALLS = []
"""
MODEL = """
@hookimpl
def list_models():
    (model,) = base.list_models()
    return [dataclasses.replace(model, name="{name}-model", runner="{name}")]
@hookimpl
def load_model(model, context): return "x"
"""
BROKEN = {
    "heavy": (
        "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n@hookimpl\ndef worker_started(): ...",
        "imports_nothing_heavy",
    ),
    "rangeless": ("@hookimpl\ndef worker_started(): ...", "which_versions_of_the_host"),
    "defaults": (
        MODEL.replace("runner=", "bounds=SizeBounds(min_side=256), runner=") + "@hookimpl\ndef generate(request): ...",
        "every_job_type_works",
    ),
    "norunner": (MODEL, "a_runner_that_generates"),
    "changing": (
        MODEL.replace('"{name}-model"', "str(len(CALLS))").replace("(model,)", "CALLS.append(1); (model,)")
        + "@hookimpl\ndef generate(request): ...",
        "host_and_lanes_are_offered_the_same",
    ),
    "shape": (
        MODEL + "@hookimpl\ndef generate(request, context): return Generation(clips=(base.draw(8, 8, 1, request.seed),))",
        "what_comes_back_is_what_was_asked_for",
    ),
    "silent": (
        MODEL + "@hookimpl\ndef generate(request, context):\n"
        "    return Generation(clips=tuple(base.draw(request.width, request.height, request.frames, request.seed + i)"
        " for i in range(request.num_images)))",
        "every_denoising_step_is_a_sign_of_life",
    ),
    "deaf": (
        MODEL + "@hookimpl\ndef generate(request, context):\n"
        "    for step in range(4):\n"
        "        try: context.step(step + 1, 4)\n"
        "        except JobCancelled: pass\n"
        "    return Generation(clips=tuple(base.draw(request.width, request.height, request.frames, request.seed + i)"
        " for i in range(request.num_images)))",
        "a_cancelled_job_ends_within_a_step",
    ),
    "random": (
        MODEL + "@hookimpl\ndef generate(request, context):\n"
        "    context.step(1, 1)\n"
        "    frames = numpy.random.randint(0, 256, (request.frames, request.height, request.width, 3), numpy.uint8)\n"
        "    return Generation(clips=tuple(Clip(frames=frames, seed=request.seed + i) for i in range(request.num_images)))",
        "the_same_request_gives_the_same_frames",
    ),
    "reasonless": (
        ("@hookimpl\ndef list_models(): return [ModelInfo(name='e', family='e', runner='reasonless', kind='enhance')]\n"
        "@hookimpl\ndef load_model(model): return 1\n"
        "@hookimpl\ndef enhance_prompt(request): return Enhancement(prompt=request.prompt, source='none')"),
        "it_gives_a_prompt_or_says_why_not",
    ),
    "moody": (
        ("@hookimpl\ndef list_models(): return [ModelInfo(name='m', family='e', runner='moody', kind='enhance')]\n"
        "@hookimpl\ndef load_model(model): return 1\n"
        "@hookimpl\ndef enhance_prompt(request):\n"
        "    CALLS.append(1)\n    return Enhancement(prompt=f'{request.prompt} {len(CALLS)}', source='e')"),
        "another_attempt_gets_the_same_prompt",
    ),
    "oddly": (
        "@hookimpl\ndef process_frames(clip): return Clip(frames=clip.frames[:, :-1], seed=clip.seed)",
        "what_comes_back_can_be_encoded",
    ),
    "inplace": (
        "@hookimpl\ndef process_frames(clip):\n    clip.frames[:] += 1\n    return clip",
        "is_left_as_it_was",
    ),
    "elsewhere": (
        ("@hookimpl\ndef postprocess(media):\n    path = Path('/tmp/wan-host-elsewhere.json')\n    path.write_text('{}')\n"
        "    return [DerivedFile(asset_index=0, role='x', path=path, content_type='application/json')]"),
        "in_the_jobs_folder",
    ),
    "clipless": (
        ("@hookimpl\ndef postprocess(media, context):\n    path = context.workdir / 'x.json'\n"
        "    path.write_text(str(media.clip.shape))\n"
        "    return [DerivedFile(asset_index=0, role='x', path=path, content_type='application/json')]"),
        "has_no_frames_any_more",
    ),
    "lying": ("@hookimpl\ndef publish(file): return PublishedFile(url='x', file_size_bytes=1)", "has_its_size"),
    "onefile": (
        "@hookimpl\ndef publish(file): return PublishedFile(url='x', file_size_bytes=file.file_size_bytes)",
        "are_other_files",
    ),
    "newurls": (
        ("@hookimpl\ndef publish(file):\n    CALLS.append(1)\n"
        "    return PublishedFile(url=f'{file.key}-{len(CALLS)}', file_size_bytes=file.file_size_bytes)"),
        "replaces_what_is_there",
    ),
    "greedy": ("@hookimpl\ndef fetch_reference(uri): return b'x'", "claims_nothing_that_is_not_its_own"),
    "refusing": ("@hookimpl\ndef deliver_report(report): return Delivery(outcome='refused')", "it_delivers_or_says"),
    "failing": ("@hookimpl\ndef worker_started(): raise ValueError('no')", "a_worker_starts_and_stops"),
    "nameless": (
        "import click\n@hookimpl\ndef add_commands(): return [PluginCommand(command=click.Command(name=None))]",
        "every_command_has_a_name",
    ),
    "hidden": (
        "import click\n@hookimpl\ndef add_commands(): return [PluginCommand(command=click.Command('run', help='x'))]",
        "no_command_hides",
    ),
}  # fmt: skip
SUITE = """
import pytest
from wan_host.plugins import discover
from wan_host.testing.contract import CONTRACTS, Contract, PluginContract
for record in discover().records:
    if record.distribution == "broken-plugins":
        general = {PluginContract} if record.name in {"heavy", "rangeless"} else set()  # slow: a process each
        for contract in general | {CONTRACTS[hook] for hook in record.hooks} - {Contract}:
            name = f"Test_{record.name}_{contract.__name__}"
            globals()[name] = type(name, (contract,), {"plugin": record.name, "configured": False})
"""


def environment_of(folder, plugins):
    """Install plugins from their sources, as one distribution of no stated range; return the environment that has them."""
    for name, code in plugins.items():
        (folder / f"broken_{name}.py").write_text(
            textwrap.dedent(HEAD) + code.replace("{name}", name).replace("{{", "{").replace("}}", "}")
        )
    modules = {name: f"broken_{name}" for name in plugins}
    instant.install(folder, modules, distribution="broken-plugins")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "WAN_HOST_DISABLED_PLUGINS": ""}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Every test of the contract that failed, by plugin."""
    folder = tmp_path_factory.mktemp("broken")
    environment = environment_of(folder, {name: code for name, (code, _) in BROKEN.items()})
    (folder / "test_broken.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q -rfE --tb=no -p no:cacheprovider\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", folder / "pytest.ini", folder / "test_broken.py"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {name: [] for name in BROKEN}
    for name, test in re.findall(r"^(?:FAILED|ERROR) \S+::Test_(\w+?)_\w+Contract::(\w+)", done.stdout, re.MULTILINE):
        found[name].append(test)
    assert any(found.values()), done.stdout + done.stderr
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_fails_the_test_of_that_rule(failures, name):
    assert any(BROKEN[name][1] in test for test in failures[name]), failures[name]


def plugin_test(*arguments, env=None):
    command = [sys.executable, "-m", "wan_host", "plugin", "test", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.timeout(240)  # a report of the worker that is killed may take a minute to be taken over
def test_a_plugin_that_keeps_the_contract_passes_with_a_run_of_chaos():
    done = plugin_test("thumbnail")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"chaos: 8 jobs with instant in \d+ s; lanes killed: 1, workers: 1;", done.stdout)
    assert " passed" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(240)  # as above
def test_chaos_finds_what_differs_from_attempt_to_attempt(tmp_path):
    code = BROKEN["random"][0].replace("context.step(1, 1)", "[(time.sleep(0.05), context.step(i, 4)) for i in (1, 2, 3, 4)]")
    done = plugin_test("random", "--model", "random-model", env=environment_of(tmp_path, {"random": code}))
    assert done.returncode == 1
    assert "attempts of the same job made different files" in done.stdout
    assert "these plugins break the contract of their hooks: random" in done.stderr


def test_what_could_not_be_tested_is_named():
    done = plugin_test("supabase", "--no-chaos")
    assert "SKIPPED" in done.stdout
    assert "override reference" in done.stdout
    assert "left out by --no-chaos" in done.stdout


def test_a_plugin_that_is_not_installed_is_one_clear_line():
    done = plugin_test("nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("wan-host: no plugin 'nothing' is installed; there are: ")
