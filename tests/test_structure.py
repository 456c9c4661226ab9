"""Limits that keep the host readable: imports go downward, modules are small, torch stays in lanes."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "wan_host" / "scaffold" / "templates"  # of plugins: not the host's own code
FOUND = sorted(path for path in (ROOT / "wan_host").rglob("*.py") if TEMPLATES not in path.parents)
HOST = {path: path.relative_to(ROOT) for path in FOUND}
PLUGINS = {path: path.relative_to(ROOT) for path in sorted((ROOT / "plugins").glob("*/wan_host_*/**/*.py"))}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors"}

LAYERS = (
    {"wan_host", "errors", "model", "request", "report", "media", "frame_processors", "checkpoint", "context", "hookspecs"},
    {"threads", "tracing", "addresses", "probe", "pictures", "encoding", "references"}
    | {"payload", "batch", "job", "settings", "plugin_settings", "metrics", "logs", "run", "costs", "reporting", "spool"},
    {"ranges", "plugins", "hooks", "builtin", "lanes", "queue"},
    {
        "connection",
        "vram",
        "lane_pool",
        "readiness",
        "retention",
        "capacity",
        "checkpoint_store",
        "early_encoding",
        "stages",
        "delivery",
        "attempt",
        "leases",
        "worker",
    },
    {"server"},
    {"scaffold", "cli", "__main__"},
)


def imports(tree, *, functions=True):
    """Imported modules with the node; blocks for type checkers do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, functions=functions)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(relative):
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(relative): path for path, relative in HOST.items()}


def area(module):
    """The top-level module or package below wan_host."""
    return module.split(".")[1] if "." in module else module


def layer(module):
    found = [index for index, names in enumerate(LAYERS) if area(module) in names]
    assert len(found) == 1, f"{module} needs a place in LAYERS"
    return found[0]


def dependencies(module, *, functions=True):
    return {name for name in imports(parse(MODULES[module]), functions=functions) if name in MODULES and name != module}


HOST_MODULES = [name for name in MODULES if area(name) != "testing"]


def offenders(found):
    """What was found, by module, where anything was."""
    return {str(name): sorted(names) for name, names in found if names}


def test_imports_go_downward_only():
    found = ((name, {used for used in dependencies(name) if layer(used) > layer(name)}) for name in HOST_MODULES)
    assert offenders(found) == {}


def test_modules_do_not_import_each_other_in_circles():
    order = TopologicalSorter({name: dependencies(name, functions=False) - {"wan_host"} for name in HOST_MODULES})
    order.prepare()


@pytest.mark.parametrize(("package", "allowed"), [("lanes", LAYERS[0]), ("queue", {"errors"}), ("builtin", LAYERS[0])])
def test_lanes_queue_and_builtin_plugins_stand_alone(package, allowed):
    used = {area(name) for module in HOST_MODULES if area(module) == package for name in dependencies(module)}
    assert used - {package} <= allowed


def test_the_host_does_not_need_what_is_there_for_tests():
    assert offenders((name, {used for used in dependencies(name) if area(used) == "testing"}) for name in HOST_MODULES) == {}


def test_the_host_imports_no_torch_anywhere():
    heavy = HEAVY - {"safetensors"}  # a file format, which needs no torch
    assert offenders((path, {name.split(".")[0] for name in imports(parse(path))} & heavy) for path in HOST) == {}


def test_plugins_import_torch_inside_functions_or_in_modules_that_say_why():
    excused = r"^(?:import|from) (\w+).*# noqa: TID253.*#.*\w"
    found = (
        (
            path,
            ({name.split(".")[0] for name in imports(parse(path), functions=False)} & HEAVY)
            - set(re.findall(excused, path.read_text("utf-8"), re.MULTILINE)),
        )
        for path in PLUGINS
    )
    assert offenders(found) == {}


def test_plugins_import_nothing_of_the_host_but_its_public_names():
    def of_the_host(path):
        for node in ast.walk(parse(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (name for name in names if name.startswith("wan_host.") and not name.startswith("wan_host.testing"))

    assert offenders((path, set(of_the_host(path))) for path in PLUGINS) == {}


def test_no_module_is_longer_than_400_lines():
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in (*HOST, *PLUGINS)}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_only_one_file_calls_hooks_through_pluggy():
    callers = {str(relative) for path, relative in HOST.items() if "subset_hook_caller" in path.read_text("utf-8")}
    assert callers == {"wan_host/hooks.py"}


def test_every_exemption_from_a_rule_says_why():
    bare = re.compile(r"#\s*(noqa(:\s*[A-Z0-9, ]+)?|type:\s*ignore(\[[\w, -]+\])?)\s*$")
    files = (*HOST, *PLUGINS)
    assert offenders((path, [line for line in path.read_text("utf-8").splitlines() if bare.search(line)]) for path in files) == {}
