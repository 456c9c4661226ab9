import subprocess
import sys

import pytest
import wan_host_qwen_enhance as plugin

from wan_host import EnhanceRequest, JobCancelled
from wan_host.plugins import discover


def test_importing_the_plugin_and_listing_its_models_imports_neither_torch_nor_transformers(tiny):
    script = (
        "import sys, wan_host_qwen_enhance as plugin\n"
        "assert [model.name for model in plugin.list_models()] == ['tiny-base']\n"
        "print([name for name in ('torch', 'transformers', 'gguf') if name in sys.modules])"
    )
    environment = {"WAN_HOST_QWEN_ENHANCE_PATH": str(tiny("base")), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_host_finds_the_plugin_and_its_model(tiny, monkeypatch):
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))
    registry = discover(disabled=("wan21", "tiny_wan", "supabase", "thumbnail"))
    record = next(record for record in registry.records if record.name == "qwen_enhance")
    assert record.status == "ok", record
    assert "tiny-instruct" in registry.models


def test_a_chosen_model_that_is_missing_is_shown_as_the_plugin_s_error(monkeypatch):
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", "/nowhere")
    registry = discover(disabled=("wan21", "tiny_wan", "supabase", "thumbnail"))
    record = next(record for record in registry.records if record.name == "qwen_enhance")
    assert record.status != "ok"
    assert "there is no folder or .gguf file /nowhere" in record.error


@pytest.mark.parametrize("kind", ["instruct", "base", "bare"])
def test_rubbish_of_a_real_but_untrained_model_never_counts_as_an_enhancement(tiny, recorder, monkeypatch, kind):
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny(kind)))
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_MAX_NEW_TOKENS", "24")
    (model,) = plugin.list_models()
    context = recorder()
    loaded = plugin.load_model(model, context)
    request = EnhanceRequest(prompt="a cat sleeps", job_type="video7b_fast_enhanced", media="video")
    result = plugin.enhance_prompt(request, loaded, context)
    assert (result.prompt, result.source) == ("a cat sleeps", "none")
    assert f"tiny-{kind} wrote nothing usable" in result.reason
    loaded.close()


def test_a_job_that_is_cancelled_ends_inside_the_writing(tiny, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))
    (model,) = plugin.list_models()
    loaded = plugin.load_model(model, recorder())
    context = recorder(stop_at=5, error=JobCancelled("job 1 was cancelled"))
    request = EnhanceRequest(prompt="a cat sleeps", job_type="video7b_fast_enhanced", media="video")
    with pytest.raises(JobCancelled):
        plugin.enhance_prompt(request, loaded, context)
    assert len(context.beats) == 5
