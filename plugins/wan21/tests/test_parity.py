"""The plugin's frames equal those of diffusers' own pipelines, bit for bit, on a CPU in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler, WanPipeline  # noqa: TID253  # as above
from wan_host_wan21.generation import generate


def solver(name: str):
    common = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": 5.0}
    if name == "unipc":
        return UniPCMultistepScheduler(**common)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **common)


def parameters(request):
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
        "output_type": "pil",
    }


def frames_of(output) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in output.frames[0]])


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("frames", [1, 9])
def test_text_to_video_and_to_image_equal_the_pipeline_loaded_by_diffusers(*, name, frames, t2v, tiny_folder, video, recorder):
    reference = WanPipeline.from_pretrained(tiny_folder("t2v"), dtype=torch.float32)
    reference.scheduler = solver(name)
    wanted = video(frames=frames, sample_solver=name)
    theirs = frames_of(reference(**parameters(wanted), num_frames=frames))
    assert np.array_equal(generate(wanted, t2v, recorder()).clips[0].frames, theirs)


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
