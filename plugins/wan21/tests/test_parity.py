"""The plugin's frames equal those of diffusers' own pipelines, bit for bit, on a CPU in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from diffusers import (  # noqa: TID253  # as above
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVACEPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image
from wan_host_wan21.generation import generate
from wan_host_wan21.settings import Wan21Settings

from wan_host import ReferenceMode, References


def solver(name: str):
    common = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": 5.0}
    if name == "unipc":
        return UniPCMultistepScheduler(**common)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **common)


@pytest.fixture
def theirs(tiny_folder):
    """Return a function that loads one of diffusers' pipelines by itself and runs a request with it."""

    def run(cls, kind, request, **inputs) -> np.ndarray:
        pipeline = cls.from_pretrained(tiny_folder(kind), dtype=torch.float32)
        pipeline.scheduler = solver(request.sample_solver)
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="pil",
            **inputs,
        )
        return np.stack([np.asarray(frame) for frame in made.frames[0]])

    return run


@pytest.fixture
def unpinned(vace, monkeypatch):
    monkeypatch.setattr(vace, "settings", Wan21Settings(pin_frames=False))
    return vace


def ours(request, model, recorder) -> np.ndarray:
    return generate(request, model, recorder()).clips[0].frames


def recipe(*, first, last, width, height, frames):
    """Return video and mask as diffusers' documentation makes them."""
    video, mask = [Image.new("RGB", (width, height), (128,) * 3)] * frames, [Image.new("L", (width, height), 255)] * frames
    keep = Image.new("L", (width, height), 0)
    if first is not None:
        video[0], mask[0] = Image.fromarray(first), keep
    if last is not None:
        video[-1], mask[-1] = Image.fromarray(last), keep
    return {"video": video, "mask": mask, "num_frames": frames}


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("frames", [1, 9])
def test_text_to_video_and_to_image_equal_the_pipeline(*, name, frames, t2v, theirs, video, recorder):
    wanted = video(frames=frames, sample_solver=name)
    assert np.array_equal(ours(wanted, t2v, recorder), theirs(WanPipeline, "t2v", wanted, num_frames=frames))


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("strength", [0.4, 0.75, 1.0])
def test_image_to_image_equals_the_video_to_video_pipeline(*, name, strength, t2v, theirs, image, picture, recorder):
    source = picture()
    wanted = image(
        reference_mode=ReferenceMode.SINGLE,
        references=References(image=source),
        denoise_strength=strength,
        sample_solver=name,
        num_inference_steps=5,
    )
    inputs = {"video": [Image.fromarray(source)], "strength": strength}
    assert np.array_equal(ours(wanted, t2v, recorder), theirs(WanVideoToVideoPipeline, "t2v", wanted, **inputs))


@pytest.mark.parametrize("mode", ["start", "end", "both"])
@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_reference_modes_equal_the_vace_pipeline(*, mode, name, unpinned, theirs, video, picture, recorder):
    first = picture(1) if mode != "end" else None
    last = picture(2) if mode != "start" else None
    wanted = video(
        reference_mode=ReferenceMode(mode), references=References(first_frame=first, last_frame=last), sample_solver=name
    )
    inputs = recipe(first=first, last=last, width=32, height=48, frames=9)
    reference = theirs(WanVACEPipeline, "vace", wanted, **inputs)
    assert np.array_equal(ours(wanted, unpinned, recorder), reference)
    assert np.array_equal(ours(wanted, unpinned, recorder), reference), "with the control latents kept"


def test_single_at_its_default_strength_is_vace_with_a_first_frame(*, unpinned, theirs, video, picture, recorder):
    wanted = video(reference_mode=ReferenceMode.SINGLE, references=References(image=picture(1)), denoise_strength=0.5)
    inputs = recipe(first=picture(1), last=None, width=32, height=48, frames=9)
    assert np.array_equal(ours(wanted, unpinned, recorder), theirs(WanVACEPipeline, "vace", wanted, **inputs))


@pytest.mark.parametrize("mode", ["none", "both"])
def test_subjects_equal_the_vace_pipeline_with_reference_images(*, mode, unpinned, theirs, video, picture, recorder):
    subjects = (picture(3), picture(4))
    given = {} if mode == "none" else {"first_frame": picture(1), "last_frame": picture(2)}
    wanted = video(reference_mode=ReferenceMode(mode), references=References(subjects=subjects, **given))
    inputs = {"reference_images": [Image.fromarray(subject) for subject in subjects], "num_frames": 9}
    if given:
        inputs |= recipe(first=picture(1), last=picture(2), width=32, height=48, frames=9)
    assert np.array_equal(ours(wanted, unpinned, recorder), theirs(WanVACEPipeline, "vace", wanted, **inputs))


@pytest.mark.parametrize(("kind", "mode"), [("i2v", "start"), ("i2v", "single"), ("flf2v", "both"), ("fun_inp", "start")])
def test_image_to_video_checkpoints_equal_their_pipeline(*, kind, mode, load_tiny, theirs, video, picture, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PIN_FRAMES", "false")
    references = References(image=picture(1), first_frame=picture(1), last_frame=picture(2))
    wanted = video(reference_mode=ReferenceMode(mode), references=references, sample_solver="unipc")
    inputs = {"image": Image.fromarray(picture(1)), "num_frames": 9}
    if mode == "both":
        inputs["last_image"] = Image.fromarray(picture(2))
    expected = theirs(WanImageToVideoPipeline, kind, wanted, **inputs)
    assert np.array_equal(ours(wanted, load_tiny(kind), recorder), expected)


def test_the_view_of_a_vace_checkpoint_is_its_base_model_without_a_copy(vace):
    """At a conditioning scale of 0 the adapter model is the text-to-video model, by the same parameters in memory."""
    full, plain = vace.components.transformer, vace.components.plain
    assert {p.data_ptr() for p in plain.parameters()} <= {p.data_ptr() for p in full.parameters()}
    hidden, text = torch.randn(1, 16, 3, 6, 4), torch.randn(1, 512, 32)
    inputs = {"hidden_states": hidden, "timestep": torch.tensor([500]), "encoder_hidden_states": text, "return_dict": False}
    with torch.no_grad():
        control = torch.randn(1, 96, 3, 6, 4)
        scale = torch.zeros(len(full.config.vace_layers))
        theirs = full(**inputs, control_hidden_states=control, control_hidden_states_scale=scale)[0]
        assert torch.equal(plain(**inputs)[0], theirs)
