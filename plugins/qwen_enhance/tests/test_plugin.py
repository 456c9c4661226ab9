import subprocess
import sys

import pytest
import wan_host_qwen_enhance as plugin

from wan_host import EnhanceRequest, JobCancelled


def test_importing_the_plugin_and_listing_its_models_imports_neither_torch_nor_transformers(tiny):
    script = (
        "import sys, wan_host_qwen_enhance as plugin\n"
        "assert [model.name for model in plugin.list_models()] == ['tiny-base']\n"
        "print([name for name in ('torch', 'transformers', 'gguf') if name in sys.modules])"
    )
    environment = {"WAN_HOST_QWEN_ENHANCE_PATH": str(tiny("base")), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
