"""Typed calls: each reaches the plugins it is meant for, and what plugins do wrong has a name."""

import asyncio
import os
import threading
from pathlib import Path

import click
import numpy as np
import pytest

from tests.test_plugins import registry_of
from wan_host import (
    Clip,
    Delivery,
    DerivedFile,
    Enhancement,
    EnhanceRequest,
    Generation,
    GenerationRequest,
    Media,
    ModelInfo,
    OutputFile,
    PluginCommand,
    PluginError,
    PublishedFile,
    ReferenceRejected,
    Report,
    WorkerInfo,
    hookimpl,
)
from wan_host.context import StageContext
from wan_host.hooks import Hooks, lane_hooks

CONTEXT = StageContext(job_id="j", user_id="u", workdir=Path(), deadline=1e18)
MODEL = ModelInfo(name="m", family="wan", runner="one")
CLIP = Clip(frames=np.zeros((1, 2, 2, 3), np.uint8), seed=1)
REQUEST = GenerationRequest(
    job_id="j",
    job_type="video_fast",
    media="video",
    prompt="p",
    width=16,
    height=16,
    frames=1,
    fps=8,
    num_inference_steps=1,
    guidance_scale=1.0,
    sample_shift=1.0,
    sample_solver="unipc",
    seed=1,
)
FILE = OutputFile(
    job_id="j",
    user_id="u",
    asset_index=0,
    role="asset",
    path=Path("0.mp4"),
    key="u/j/0.mp4",
    content_type="a/b",
    file_size_bytes=1,
)
WORKER = WorkerInfo(worker_id="w", version="1", host="h", port=1, url="", devices=("cpu",))


def media(tmp_path):
    return Media(
        asset_index=2,
        kind="image",
        path=tmp_path / "2.png",
        width=2,
        height=2,
        frames=1,
        fps=1.0,
        duration=1.0,
        format="png",
        file_size_bytes=1,
        seed=1,
    )


def report():
    return Report(job_id="j", attempt=1, status="completed", sequence=1, payload={})


def plugin(**functions):
    """A plugin object with the given hooks, each called with all of its parameters by name."""
    return type("Plugin", (), {name: staticmethod(hookimpl(function)) for name, function in functions.items()})()


def hooks_of(**plugins):
    registry = registry_of(**plugins)
    assert all(record.status == "ok" for record in registry.records), registry.records
    return Hooks(registry)


def raising(error):
    def hook():
        raise error

    return hook


# Calls that go to one plugin ------------------------------------------------------------------------------------------


def test_load_and_generate_reach_the_models_runner_only():
    def loader(name):
        return lambda model, context: f"{name} loaded {model.name} on {context}"

    def generator(name):
        return lambda request, model, context: Generation(clips=(CLIP,), metadata={"by": name, "model": model})

    plugins = {n: plugin(load_model=loader(n), generate=generator(n)) for n in ("one", "two")}
    hooks = hooks_of(**plugins)
    loaded = hooks.load_model(MODEL, "cpu")
    assert loaded == "one loaded m on cpu"
    assert hooks.generate(REQUEST, loaded, MODEL, "cpu").metadata == {"by": "one", "model": loaded}


def test_a_plugin_that_came_later_is_not_called_in_anothers_place():
    hooks = hooks_of(one=plugin(load_model=lambda model: "one"))
    assert hooks.load_model(MODEL, None) == "one"
    hooks.registry.add("two", plugin(load_model=lambda model: "two"), distribution="d", version="1")
    assert hooks.load_model(MODEL, None) == "one"


def test_a_plugin_that_is_quarantined_later_is_not_called_any_more():
    hooks = hooks_of(one=plugin(load_model=lambda model: "one"))
    assert hooks.load_model(MODEL, None) == "one"
    hooks.registry.quarantine(hooks.registry.records[0], ValueError("broke"))
    with pytest.raises(PluginError, match="no working plugin 'one' has the hook load_model"):
        hooks.load_model(MODEL, None)


def test_enhance_process_and_publish_reach_the_plugin_that_was_named():
    def named(name):
        return plugin(
            enhance_prompt=lambda request, model, context: Enhancement(prompt=request.prompt + model, source=name),
            process_frames=lambda clip, request, context: Clip(frames=clip.frames, seed=len(name)),
            publish=lambda file, context: PublishedFile(url=f"{name}/{file.key}", file_size_bytes=1),
        )

    hooks = hooks_of(one=named("one"), second=named("second"))
    request = EnhanceRequest(prompt="p", job_type="t", media="video")
    assert hooks.enhance_prompt("second", request, "!", None) == Enhancement(prompt="p!", source="second")
    assert hooks.process_frames("second", CLIP, REQUEST, None).seed == 6
    assert hooks.publish("one", FILE, CONTEXT).url == "one/u/j/0.mp4"


def test_a_call_to_a_plugin_that_is_not_there_says_which_ones_are():
    hooks = hooks_of(local=plugin(publish=lambda: None), other=plugin(worker_started=lambda: None))
    with pytest.raises(PluginError, match="no working plugin 'supabase' has the hook publish; there are: local"):
        hooks.publish("supabase", FILE, CONTEXT)


@pytest.mark.parametrize("hook", ["generate", "enhance_prompt", "process_frames", "publish"])
@pytest.mark.parametrize("value", [None, {}, "x"])
def test_a_hook_that_returns_something_else_is_named_with_its_plugin(hook, value):
    hooks = hooks_of(one=plugin(**{hook: lambda: value}))
    calls = {
        "generate": lambda: hooks.generate(REQUEST, None, MODEL, None),
        "enhance_prompt": lambda: hooks.enhance_prompt("one", None, None, None),
        "process_frames": lambda: hooks.process_frames("one", CLIP, REQUEST, None),
        "publish": lambda: hooks.publish("one", FILE, CONTEXT),
    }
    with pytest.raises(PluginError, match=f"plugin one: {hook} returned {type(value).__name__}, expected "):
        calls[hook]()


def test_what_a_hook_raises_passes_through_unchanged():
    error = OSError("disk")
    with pytest.raises(OSError, match="disk") as caught:
        hooks_of(one=plugin(publish=raising(error))).publish("one", FILE, CONTEXT)
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(1), StopIteration()])
async def test_neither_an_exit_nor_a_stop_iteration_gets_through_a_thread_to_the_host(error):
    hooks = hooks_of(one=plugin(publish=raising(error)))
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match=f"plugin one: publish raised {type(error).__name__}"):
            await asyncio.to_thread(hooks.publish, "one", FILE, CONTEXT)


# Calls that go to many ------------------------------------------------------------------------------------------------


def test_plugins_are_asked_in_the_order_of_their_names_and_builtin_ones_first():
    hooks = hooks_of(zebra=plugin(deliver_report=lambda: None), ant=plugin(deliver_report=lambda: None))
    hooks.registry.add("log", plugin(deliver_report=lambda: None), distribution="wan-host", version="1", builtin=True)
    assert hooks.plugins_with("deliver_report") == ("log", "ant", "zebra")
    assert hooks.plugins_with("publish") == ()


def derived(tmp_path, role, index=2, name=None):
    path = tmp_path / (name or f"{role}.webp")
    if name is None:
        path.write_bytes(b"x")
    return DerivedFile(asset_index=index, role=role, path=path, content_type="image/webp")


def test_derived_files_come_in_the_order_of_the_plugins_names(tmp_path):
    a, b, c = (derived(tmp_path, role) for role in ("thumbnail", "preview", "sheet"))

    def sheet():
        yield c

    hooks = hooks_of(z=plugin(postprocess=sheet), a=plugin(postprocess=lambda: [a, b]), m=plugin(postprocess=lambda: None))
    assert hooks.postprocess(media(tmp_path), CONTEXT) == [a, b, c]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda folder: 5, "postprocess returned int, expected a list"),
        (lambda folder: ["x.webp"], "postprocess returned str, expected DerivedFile"),
        (lambda folder: [derived(folder, "a/b", name="x")], "the role 'a/b'"),
        (lambda folder: [derived(folder, "..", name="x")], "the role '..'"),
        (lambda folder: [derived(folder, "asset")], "of the role 'asset', as did the asset itself"),
        (lambda folder: [derived(folder, "thumbnail", index=0)], "for asset 0 when given 2"),
        (lambda folder: [derived(folder, "thumbnail", name="gone.webp")], "names the file 'gone.webp', which is not there"),
    ],
)
def test_derived_files_that_could_not_be_published_are_refused(tmp_path, returned, reason):
    hooks = hooks_of(thumbs=plugin(postprocess=lambda: returned(tmp_path)))
    with pytest.raises(PluginError, match="plugin thumbs: postprocess ") as caught:
        hooks.postprocess(media(tmp_path), CONTEXT)
    assert reason in str(caught.value)


def test_two_plugins_cannot_make_the_same_derived_file(tmp_path):
    made = [derived(tmp_path, "thumbnail")]
    hooks = hooks_of(one=plugin(postprocess=lambda: made), two=plugin(postprocess=lambda: made))
    with pytest.raises(PluginError, match=r"plugin two: .* 'thumbnail', as did plugin one"):
        hooks.postprocess(media(tmp_path), CONTEXT)


def test_the_first_plugin_that_claims_a_reference_answers():
    asked = []

    def answering(name, data):
        return lambda uri, context: asked.append((name, uri, context.user_id)) or data

    hooks = hooks_of(
        a=plugin(fetch_reference=answering("a", None)),
        c=plugin(fetch_reference=answering("c", b"third")),
        b=plugin(fetch_reference=answering("b", b"second")),
    )
    assert hooks.fetch_reference("library/x", CONTEXT) == b"second"
    assert asked == [("a", "library/x", "u"), ("b", "library/x", "u")]


def test_a_reference_that_nobody_claims_is_none():
    assert hooks_of(a=plugin(fetch_reference=lambda: None)).fetch_reference("x", CONTEXT) is None
    assert hooks_of().fetch_reference("x", CONTEXT) is None


def test_a_plugin_that_fails_does_not_keep_another_from_fetching_the_reference():
    broken = plugin(fetch_reference=raising(KeyError("bug")))
    assert hooks_of(a=broken, b=plugin(fetch_reference=lambda: b"x")).fetch_reference("x", CONTEXT) == b"x"
    with pytest.raises(KeyError, match="bug"):
        hooks_of(a=broken, b=plugin(fetch_reference=lambda: None)).fetch_reference("x", CONTEXT)


def test_a_plugin_that_forbids_a_reference_has_the_last_word():
    hooks = hooks_of(a=plugin(fetch_reference=raising(ReferenceRejected("not yours"))), b=plugin(fetch_reference=lambda: b"x"))
    with pytest.raises(ReferenceRejected, match="not yours"):
        hooks.fetch_reference("x", CONTEXT)


def test_a_reference_that_is_no_bytes_is_the_plugins_fault():
    with pytest.raises(PluginError, match="plugin a: fetch_reference returned str, expected bytes"):
        hooks_of(a=plugin(fetch_reference=lambda: "x")).fetch_reference("x", CONTEXT)


# Reports --------------------------------------------------------------------------------------------------------------


def test_a_report_reaches_one_sink_with_its_context():
    seen = []
    sink = plugin(deliver_report=lambda report, context: seen.append((report.sequence, context)) or Delivery(outcome="accepted"))
    hooks = hooks_of(one=sink, two=plugin(deliver_report=raising(AssertionError("not asked"))))
    assert hooks.deliver_report("one", report(), CONTEXT) == Delivery(outcome="accepted")
    assert seen == [(1, CONTEXT)]


def test_a_sink_that_is_not_configured_answers_nothing():
    assert hooks_of(one=plugin(deliver_report=lambda: None)).deliver_report("one", report(), CONTEXT) is None


@pytest.mark.parametrize("error", [ValueError("no"), PluginError("no"), SystemExit("no"), StopIteration("no")])
def test_an_exception_of_a_sink_is_a_retry_that_names_it(error):
    answer = hooks_of(one=plugin(deliver_report=raising(error))).deliver_report("one", report(), CONTEXT)
    assert answer.outcome == "retry"
    assert answer.note.startswith("one: ")
    assert answer.note.endswith("no")


@pytest.mark.parametrize("value", [True, "accepted", Delivery(outcome="done")])
def test_an_answer_that_is_none_is_a_retry_and_never_an_acceptance(value):
    answer = hooks_of(one=plugin(deliver_report=lambda: value)).deliver_report("one", report(), CONTEXT)
    assert answer.outcome == "retry"
    assert "one: PluginError: plugin one: deliver_report " in answer.note


# Start, stop, commands ------------------------------------------------------------------------------------------------


def test_start_and_stop_are_told_to_one_plugin_with_the_worker():
    seen = []
    hooks = hooks_of(
        one=plugin(
            worker_started=lambda worker: seen.append(("start", worker)),
            worker_stopping=lambda worker: seen.append(("stop", worker)),
        ),
        two=plugin(worker_started=raising(AssertionError), worker_stopping=raising(AssertionError)),
    )
    hooks.worker_started("one", WORKER)
    hooks.worker_stopping("one", WORKER)
    assert seen == [("start", WORKER), ("stop", WORKER)]


def command(name):
    return PluginCommand(command=click.Command(name), group="models")


@pytest.mark.parametrize(
    "broken",
    [raising(OSError("x")), raising(SystemExit("x")), lambda: [command("b"), "x"], lambda: 5, lambda: [click.Command("x")]],
)
def test_a_plugin_whose_commands_fail_is_quarantined_and_the_others_keep_theirs(broken):
    good, after = command("good"), command("after")
    hooks = hooks_of(
        a=plugin(add_commands=lambda: [good]),
        b=plugin(add_commands=broken, publish=lambda: None),
        c=plugin(add_commands=lambda: iter([after])),
        d=plugin(add_commands=lambda: None),
    )
    assert hooks.add_commands() == [good, after]
    status = {record.name: record.status for record in hooks.registry.records}
    assert status == {"a": "ok", "b": "quarantined", "c": "ok", "d": "ok"}
    assert hooks.plugins_with("publish") == ()
    assert hooks.add_commands() == [good, after]


# Threads and lanes ----------------------------------------------------------------------------------------------------


def test_one_hook_can_be_called_from_many_threads_at_once():
    barrier = threading.Barrier(4, timeout=10)
    hooks = hooks_of(one=plugin(publish=lambda file: PublishedFile(url=str(barrier.wait()), file_size_bytes=1)))
    threads = [threading.Thread(target=hooks.publish, args=("one", FILE, CONTEXT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not barrier.broken


def test_a_lane_finds_the_same_plugins_without_the_builtin_and_the_disabled_ones(environment, monkeypatch):
    code = "from wan_host import hookimpl\n@hookimpl\ndef generate(): ..."
    environment.add("on", code)
    environment.add("off", code)
    monkeypatch.setenv("WAN_HOST_DISABLED_PLUGINS", "off")
    hooks = lane_hooks()
    assert hooks.plugins_with("generate") == ("on",)
    assert not any(record.builtin for record in hooks.registry.records)
    assert os.environ["WAN_HOST_DISABLED_PLUGINS"] == "off"
