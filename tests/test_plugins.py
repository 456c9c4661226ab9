"""Finding plugins, and keeping the broken ones apart from the others."""

import sys
from types import SimpleNamespace

import pluggy
import pytest

from wan_host import FrameProcessor, JobDefaults, ModelInfo, ReferenceMode, hookimpl, hookspecs
from wan_host.hooks import Hooks
from wan_host.plugins import HOOK_NAMES, PluginRegistry, discover

GOOD = """
    from wan_host import hookimpl, ModelInfo

    @hookimpl
    def list_models():
        return [ModelInfo(name="{model}", family="wan", runner="{runner}")]

    @hookimpl
    def load_model(model, context):
        return "loaded by {runner}"
"""


def good(name):
    return GOOD.format(model=f"{name}-model", runner=name)


def records(registry):
    return {record.name: record for record in registry.records}


def registry_of(**plugins):
    """A registry of plugin objects, without any installed distribution."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = PluginRegistry(manager)
    for name, plugin in plugins.items():
        registry.add(name, plugin, distribution=f"dist-{name}", version="1.0")
    return registry


def offering(*models):
    """A plugin that offers models."""

    class Plugin:
        @hookimpl
        def list_models(self):
            return list(models)

    return Plugin()


def model(name, **values):
    return ModelInfo(**{"name": name, "family": "wan", "runner": "a"} | values)


# Discovery ------------------------------------------------------------------------------------------------------------


def test_a_working_plugin_is_found_with_its_distribution_version_hooks_and_models(environment):
    environment.add("good", good("good"))
    (record,) = discover().records
    assert (record.name, record.distribution, record.version, record.status) == ("good", "wan-host-good", "1.2.3", "ok")
    assert (record.hooks, record.models, record.error) == (("list_models", "load_model"), ("good-model",), "")
    assert record.origin == "good (wan-host-good 1.2.3)"


BROKEN = {
    "import": ("import a_module_that_is_nowhere", "ModuleNotFoundError: No module named 'a_module_that_is_nowhere'"),
    "exit": ("raise SystemExit('bye')", "SystemExit: bye"),
    "bare": ("raise SystemExit", "SystemExit"),
    "syntax": ("def (", "SyntaxError: invalid syntax"),
    "long": ("raise ValueError('line\\n' * 10_000)", "ValueError: line line "),
    "none": ("x = 1", "it has no hooks: mark functions with @wan_host.hookimpl"),
    "unknown": (
        "@hookimpl\ndef generat(request): ...",
        "unknown hook generat (did you mean generate?); the hooks are list_models",
    ),
    "specname": ("@hookimpl(specname='generat')\ndef make(request): ...", "unknown hook generat (did you mean generate?)"),
    "argument": (
        "@hookimpl\ndef generate(request, modle): ...",
        "hook generate asks for 'modle'; what it is given is: request, model, context",
    ),
    "listarg": (
        "@hookimpl\ndef list_models(settings): ...",
        "hook list_models asks for 'settings'; what it is given is: nothing",
    ),
    "keyword": ("@hookimpl\ndef generate(request, *, model): ...", "hook generate takes 'model' by position or keyword only"),
    "async": ("@hookimpl\nasync def generate(request): ...", "hook generate is asynchronous"),
    "asyncgen": ("@hookimpl\nasync def list_models():\n    yield", "hook list_models is asynchronous"),
    "wrapper": ("@hookimpl(wrapper=True)\ndef generate(request):\n    return (yield)", "hook generate is a wrapper"),
    "twice": (
        "@hookimpl\ndef generate(request): ...\n@hookimpl(specname='generate')\ndef other(request): ...",
        "hook generate is implemented twice",
    ),
    "raises": ("@hookimpl\ndef list_models():\n    raise OSError('disk on fire')", "OSError: disk on fire"),
    "halfway": (
        "@hookimpl\ndef list_models():\n    yield ModelInfo(name='m', family='f', runner='r')\n    raise OSError('gone')",
        "OSError: gone",
    ),
    "exits": ("@hookimpl\ndef list_models():\n    raise SystemExit(3)", "SystemExit: 3"),
    "nothing": ("@hookimpl\ndef list_models(): ...", "list_models returned NoneType, expected ModelInfo objects in a list"),
    "dicts": (
        "@hookimpl\ndef list_models():\n    return [{'name': 'x'}]",
        "list_models returned a list with dict, expected ModelInfo",
    ),
    "undescribed": (
        "@hookimpl\ndef describe_processor():\n    return FrameProcessor()",
        "it has the hook describe_processor, but no process_frames to describe",
    ),
    **{
        name: (f"@hookimpl\ndef process_frames(clip): ...\n@hookimpl\ndef describe_processor():\n    {body}", reason)
        for name, body, reason in (
            ("described", "return 2", "describe_processor returned int, expected a FrameProcessor"),
            ("undescribable", "raise OSError('gone')", "OSError: gone"),
            ("rated", "return FrameProcessor(rate=0)", "describe_processor: rate is 0, expected a whole number from 1"),
            ("scaled", "return FrameProcessor(scale=1.5)", "describe_processor: scale is 1.5, expected a whole number from 1"),
            ("mediated", "return FrameProcessor(media=frozenset())", "describe_processor: media is set(), expected 'image'"),
        )
    },
    "same": (
        "@hookimpl\ndef list_models():\n    return [ModelInfo(name='m', family='f', runner='r')] * 2",
        "list_models offers the model 'm' twice",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_quarantined_with_a_short_reason_and_breaks_no_other(environment, name):
    code, reason = BROKEN[name]
    environment.add("aaa", good("aaa"))
    environment.add(name, f"from wan_host import hookimpl, FrameProcessor, ModelInfo\n{code}")
    environment.add("zzz", good("zzz"))
    registry = discover()
    broken = records(registry)[name]
    assert broken.status == "quarantined"
    assert broken.error.startswith(reason)
    assert len(broken.error) < 600
    assert "\n" not in broken.error
    assert (broken.hooks, broken.models, broken.version) == ((), (), "1.2.3")
    assert {n for n, record in records(registry).items() if record.status == "ok"} == {"aaa", "zzz"}
    assert set(registry.models) == {"aaa-model", "zzz-model"}
    assert not registry.manager.has_plugin(name)
    hooks = Hooks(registry)
    assert all(name not in hooks.plugins_with(hook) for hook in HOOK_NAMES)


def test_frame_processors_are_what_their_plugins_say_and_else_keep_number_and_size(environment):
    environment.add("plain", "from wan_host import hookimpl\n@hookimpl\ndef process_frames(clip): return clip")
    environment.add(
        "large",
        """
        from wan_host import FrameProcessor, hookimpl
        @hookimpl
        def describe_processor(): return FrameProcessor(scale=2)
        @hookimpl
        def process_frames(clip): return clip
        """,
    )
    environment.add("other", good("other"))
    registry = discover()
    assert registry.frame_processors == {"plain": FrameProcessor(), "large": FrameProcessor(scale=2)}
    registry.quarantine(records(registry)["large"], OSError("later"))
    assert set(registry.frame_processors) == {"plain"}


def test_of_a_plugin_that_fails_halfway_nothing_stays_registered(environment):
    environment.add(
        "half",
        """
        from wan_host import hookimpl

        @hookimpl
        def deliver_report(report): ...

        @hookimpl
        def worker_started(wrong_name): ...
        """,
    )
    registry = discover()
    assert registry.manager.hook.deliver_report.get_hookimpls() == []
    assert registry.manager.get_plugins() == set()


def test_a_hook_may_leave_out_parameters_and_have_optional_ones_of_its_own(environment):
    environment.add(
        "lean",
        """
        from wan_host import hookimpl

        @hookimpl
        def generate(request, own=None, *rest, other=1, **more): ...
        """,
    )
    assert records(discover())["lean"].status == "ok"


def test_two_plugins_of_one_name_are_told_apart_by_their_distributions(environment):
    environment.add("wan", good("one"), distribution="acme-wan", module="acme_wan")
    environment.add("wan", good("two"), distribution="best-wan", module="best_wan", version="9")
    found = records(discover())
    assert found["wan"].distribution == "acme-wan"
    assert found["wan@best-wan"].error == "the plugin name 'wan' is taken by wan (acme-wan 1.2.3)"


def test_a_plugin_cannot_take_the_name_of_a_builtin_one(environment):
    environment.add("local", good("local"))
    found = records(discover(builtins={"local": offering()}))
    assert (found["local"].builtin, found["local"].status) == (True, "ok")
    assert "is taken by local (wan-host " in found["local@wan-host-local"].error


def test_a_model_name_that_is_taken_names_both_providers_with_their_versions(environment):
    environment.add("one", GOOD.format(model="wan", runner="one"))
    environment.add("two", GOOD.format(model="wan", runner="two"), version="2.0")
    registry = discover()
    error = records(registry)["two"].error
    assert error == "the model name 'wan' of two (wan-host-two 2.0) is taken by one (wan-host-one 1.2.3)"
    assert registry.models["wan"].runner == "one"


def test_one_module_under_two_names_is_registered_once(environment):
    environment.add("one", good("one"), entry_point="[wan_host]\none = fake_one\ntwo = fake_one\n")
    found = records(discover())
    assert found["one"].status == "ok"
    assert found["two"].error == "it names the same object as the plugin 'one'"


def test_an_entry_point_may_name_an_object_in_a_module(environment):
    code = """
        from wan_host import hookimpl

        class Plugin:
            @hookimpl
            def worker_started(self, worker): ...

        plugin = Plugin()
    """
    environment.add("objects", code, entry_point="[wan_host]\nobjects = fake_objects:plugin\n")
    assert records(discover())["objects"].hooks == ("worker_started",)


def test_a_disabled_plugin_is_listed_but_not_even_imported(environment):
    module = environment.add("off", "raise RuntimeError('imported')")
    registry = discover(disabled=("off",))
    assert records(registry)["off"].status == "disabled"
    assert module not in sys.modules


def test_a_builtin_plugin_can_be_disabled_too(environment):
    registry = discover(builtins={"log": offering(model("m", runner="log"))}, disabled=("log",))
    assert records(registry)["log"].status == "disabled"
    assert not registry.models


@pytest.mark.parametrize("text", ["[wan_host]\nno equals sign\n", "[wan_host]\nx = \n", "[wan_host]\nx = a:b:c d\n"])
def test_an_entry_point_that_cannot_be_read_hides_no_other_plugin(environment, text):
    environment.add("bad", "", entry_point=text)
    environment.add("good", good("good"))
    registry = discover()
    assert set(registry.models) == {"good-model"}
    assert [record.status for record in registry.records if record.distribution == "wan-host-bad"] == ["quarantined"]


def test_damaged_metadata_of_strangers_is_none_of_our_business(environment):
    environment.add("stranger", "", entry_point="[console_scripts]\nno equals sign\n")
    assert discover().records == ()


def test_a_distribution_without_metadata_is_a_plugin_all_the_same(environment):
    environment.add("bare", good("bare"), metadata=False)
    (record,) = discover().records
    assert record.status == "ok"
    assert isinstance(record.distribution, str)
    assert isinstance(record.version, str)


def test_a_copy_further_down_the_path_is_the_same_distribution(environment, monkeypatch):
    import importlib.metadata

    environment.add("good", good("good"))
    once = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*once(), *once()])
    assert [record.status for record in discover().records] == ["ok"]


def test_the_plugins_of_this_repository_work_when_they_are_installed():
    found = {record.name: record for record in discover().records}
    assert found["wan21"].status == found["tiny_wan"].status == found["thumbnail"].status == "ok"
    assert found["tiny_wan"].models == ("tiny-wan",)


# The registry ---------------------------------------------------------------------------------------------------------


def test_required_plugins_that_do_not_work_are_named_with_the_reason(environment):
    environment.add("bad", "import nowhere_at_all")
    environment.add("off", good("off"))
    environment.add("good", good("good"))
    missing = discover(disabled=("off",)).missing(["good", "bad", "off", "gone"])
    assert missing == {
        "bad": "plugin bad (wan-host-bad 1.2.3) is required but quarantined: "
        "ModuleNotFoundError: No module named 'nowhere_at_all'",
        "off": "plugin off (wan-host-off 1.2.3) is required but disabled: by setting",
        "gone": "plugin gone is required (WAN_HOST_REQUIRED_PLUGINS) but not installed",
    }


def test_a_model_whose_runner_is_missing_is_an_orphan_and_cannot_be_chosen():
    registry = registry_of(a=offering(model("fine"), model("lost", runner="gone")))
    assert set(registry.models) == {"fine"}
    assert registry.orphans == {"lost": "its runner, the plugin 'gone', is not installed or does not work"}
    assert registry.default_model(None) == "fine"


def test_a_model_of_a_runner_that_is_quarantined_later_becomes_an_orphan():
    registry = registry_of(a=offering(model("fine", runner="b")), b=offering(model("own", runner="b")))
    record = records(registry)["b"]
    registry.quarantine(record, ValueError("broke"))
    assert not registry.models
    assert set(registry.orphans) == {"fine"}
    assert records(registry)["b"].error == "ValueError: broke"


def test_a_name_that_a_quarantined_plugin_had_is_free_again():
    registry = registry_of(a=offering(model("m")))
    registry.quarantine(records(registry)["a"], ValueError("broke"))
    registry.add("b", offering(model("m", runner="b")), distribution="dist-b", version="1.0")
    assert registry.models["m"].runner == "b"


@pytest.mark.parametrize(
    ("names", "setting", "expected"),
    [
        ((), None, None),
        (("x",), None, "x"),
        (("x", "y"), None, None),
        (("x", "tiny-wan"), None, "tiny-wan"),
        (("x", "tiny-wan"), "x", "x"),
        (("x",), "not-there", "not-there"),
    ],
)
def test_the_default_model_is_the_setting_else_the_only_one_else_the_embedded_one(names, setting, expected):
    registry = registry_of(a=offering(*map(model, names), model("enhancer", kind="enhance")))
    assert registry.default_model(setting) == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": ""}, "the model name '' is not allowed"),
        ({"name": "two words"}, "the model name 'two words' is not allowed"),
        ({"name": 5}, "a model has the name 5, expected a text"),
        ({"runner": None}, "a model has the runner None, expected a text"),
        ({"kind": "upscale"}, "has the kind 'upscale'"),
        ({"job_types": {"video_fast": {"width": 5}}}, "maps 'video_fast' to dict, not JobDefaults"),
        ({"job_types": {5: JobDefaults(media="video")}}, "maps 5 to JobDefaults"),
        ({"reference_modes": frozenset({"none"})}, "are not all of ReferenceMode"),
    ],
)
def test_metadata_that_would_fail_only_when_a_job_comes_is_refused_at_start(values, reason):
    registry = registry_of(a=offering(model(**{"name": "m"} | values)))
    assert reason in records(registry)["a"].error
    assert not registry.models


def test_models_cannot_be_changed_by_those_who_see_them():
    types = {"video_fast": JobDefaults(media="video")}
    offered = model("m", job_types=types, reference_modes=frozenset({ReferenceMode.NONE}), options={"a": 1})
    registry = registry_of(a=offering(offered))
    types.clear()
    assert set(registry.models["m"].job_types) == {"video_fast"}
    with pytest.raises(TypeError):
        registry.models["m"].job_types["x"] = None
    with pytest.raises(TypeError):
        registry.models["new"] = offered


def test_an_object_with_attributes_that_raise_is_quarantined():
    class Hostile:
        @property
        def trap(self):
            raise RuntimeError("do not look")

        @hookimpl
        def worker_started(self, worker): ...

    assert records(registry_of(a=Hostile()))["a"].error == "RuntimeError: do not look"


def test_the_hooks_are_those_of_the_specification():
    specified = {name for name, value in vars(hookspecs).items() if getattr(value, "wan_host_spec", None) is not None}
    assert set(HOOK_NAMES) == specified
    assert {"load_model", "enhance_prompt", "generate", "postprocess", "publish"} <= specified


def test_a_plain_namespace_can_be_a_plugin():
    @hookimpl
    def worker_stopping(worker): ...

    assert records(registry_of(a=SimpleNamespace(worker_stopping=worker_stopping)))["a"].hooks == ("worker_stopping",)
