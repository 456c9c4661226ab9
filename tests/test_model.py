"""What a plugin says of a model: frozen, picklable, and the eight job types of the contract."""

import dataclasses
import pickle
import subprocess
import sys

import pytest

from tests.sample_jobs import TEXT_ONLY, WAN
from wan_host import JobDefaults, ModelInfo, ReferenceMode, SizeBounds, wan_job_types

EIGHT = {
    "image_fast",
    "image_high",
    "video_fast",
    "video_high",
    "image7b_fast_enhanced",
    "image7b_high_enhanced",
    "video7b_fast_enhanced",
    "video7b_high_enhanced",
}


def types(**values):
    base = {"fast_steps": 4, "high_steps": 8, "fast_guidance": 1.0, "high_guidance": 2.0}
    video = JobDefaults(media="video", width=128, height=64, frames=17, fps=8, sample_shift=3.0, sample_solver="unipc")
    return wan_job_types(video, dataclasses.replace(video, width=256), **base | values)


def test_there_are_the_eight_job_types():
    assert set(types()) == EIGHT


@pytest.mark.parametrize("name", sorted(EIGHT))
def test_quality_decides_steps_and_guidance_and_the_rest_comes_from_the_base(name):
    found = types()[name]
    assert (found.num_inference_steps, found.guidance_scale) == ((8, 2.0) if "high" in name else (4, 1.0))
    assert found.enhance is name.endswith("_enhanced")
    assert found.media == name.split("_")[0].removesuffix("7b")
    assert (found.width, found.frames) == ((256, 1) if found.media == "image" else (128, 17))
    assert (found.height, found.fps, found.sample_shift, found.sample_solver) == (64, 8, 3.0, "unipc")


def test_the_defaults_without_further_words_are_the_contracts():
    found = JobDefaults(media="video")
    assert (found.width, found.height, found.frames, found.fps) == (480, 832, 83, 24)
    assert (found.num_inference_steps, found.guidance_scale, found.sample_solver) == (25, 6.5, "dpm++")
    assert SizeBounds().multiple == 16
    assert SizeBounds().max_frames == 83


def test_the_five_modes_are_those_of_the_seed():
    assert [mode.value for mode in ReferenceMode] == ["none", "single", "start", "end", "both"]


@pytest.mark.parametrize("model", [WAN, TEXT_ONLY, ModelInfo(name="m", family="f", runner="r", options={"dtype": "bf16"})])
def test_a_model_crosses_process_borders(model):
    copy = pickle.loads(pickle.dumps(model))
    assert copy == model
    assert dict(copy.job_types) == dict(model.job_types)


def test_a_copy_from_another_process_is_frozen_too():
    copy = pickle.loads(pickle.dumps(WAN))
    with pytest.raises(TypeError):
        copy.options["x"] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.name = "other"


def test_what_was_offered_does_not_change_with_the_dictionaries_that_it_was_made_of():
    job_types, options = types(), {"dtype": "bf16"}
    model = ModelInfo(name="m", family="f", runner="r", job_types=job_types, options=options)
    job_types.clear()
    options.clear()
    assert set(model.job_types) == EIGHT
    assert model.options == {"dtype": "bf16"}


def test_a_model_can_be_varied():
    varied = dataclasses.replace(WAN, name="mine", path="/models/mine", options={"x": 1})
    assert (varied.name, varied.runner, dict(varied.options)) == ("mine", "wan21", {"x": 1})
    assert varied.job_types == WAN.job_types


def test_what_a_plugin_needs_to_offer_a_model_is_quick_to_import():
    code = "import sys; from wan_host import ModelInfo; print('numpy' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "False False\n"
