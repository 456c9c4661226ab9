import wan_host_my_plugin

from wan_host import EnhanceRequest
from wan_host.hooks import Hooks
from wan_host.plugins import discover
from wan_host.testing.lane import FakeLane


def enhanced(prompt, media="video"):
    (model,) = wan_host_my_plugin.list_models()
    with FakeLane(Hooks(discover())) as lane:
        lane.load(model.name)
        request = EnhanceRequest(prompt=prompt, job_type=f"{media}7b_fast_enhanced", media=media)
        return lane.enhance("my_plugin", model.name, request)


def test_a_short_prompt_gets_light_and_camera():
    result = enhanced("a cat sleeps.")
    assert result.prompt.startswith("a cat sleeps, ")
    assert result.prompt.count(",") == 2
    assert result.source == "my-plugin"


def test_an_image_has_no_camera_that_moves():
    assert enhanced("a cat sleeps", media="image").prompt.count(",") == 1


def test_a_prompt_that_says_enough_is_used_as_it_is():
    for prompt in ("word " * 50, "a cat in red light, the camera shakes"):
        result = enhanced(prompt)
        assert (result.prompt, result.source) == (prompt, "none")
        assert result.reason
