"""UniPC gives diffusers' bits, and a step never waits for the device."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253  # a test of torch code
from diffusers import UniPCMultistepScheduler, WanPipeline  # noqa: TID253  # as above
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: TID253  # as above
from wan_host_wan21.sampling import Prompts, Steps, denoise, noise_source
from wan_host_wan21.solvers import scheduler_for
from wan_host_wan21.unipc import UniPC

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": 3.0}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_equals_diffusers(steps, dtype):
    theirs, ours = UniPCMultistepScheduler(**FLOW), UniPC(**FLOW)
    source = torch.Generator().manual_seed(1)
    expected = made = torch.randn(1, 16, 3, 6, 4, generator=source)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
    for timestep in theirs.timesteps:
        prediction = torch.randn(expected.shape, generator=source).to(dtype)
        expected = theirs.step(prediction, timestep, expected, return_dict=False)[0]
        made = ours.step(prediction, timestep, made, return_dict=False)[0]
        assert torch.equal(made, expected)
    assert torch.isfinite(made).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("solver_order", 3),
        ("solver_type", "bh1"),
        ("predict_x0", False),
        ("solver_p", UniPCMultistepScheduler(**FLOW)),
        ("use_flow_sigmas", False),
        ("prediction_type", "epsilon"),
    ],
)
def test_what_it_does_not_compute_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"(?s)^{field}=.*; this UniPC computes only "):
        UniPC(**FLOW | {field: value})


def test_it_can_be_made_of_a_configuration():
    assert UniPC.from_config(UniPC(**FLOW).config).config.flow_shift == 3.0


class Crossings(TorchDispatchMode):
    """Counts what makes a host wait: copies from one kind of device to another, and numbers read from tensors."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        kinds = {value.device.type for value in (*args, made) if isinstance(value, torch.Tensor)}
        copies = name in {"_to_copy", "copy_"} and len(kinds) > 1
        if copies or (name == "_local_scalar_dense" and args[0].device.type == "meta"):
            self.seen.append(name)
        return made


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_the_loop_never_waits_for_the_device(solver, t2v, video, recorder):
    """On a device without numbers, where reading one fails: what crosses over does so before the first step ends."""
    request = video(sample_solver=solver, num_inference_steps=6)
    transformer, places = t2v.components.plain, []
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=None,
        transformer=type(transformer).from_config(transformer.config).to("meta"),
    )
    pipeline.set_progress_bar_config(disable=True)
    text = torch.empty(1, 512, transformer.config.text_dim, device="meta")
    with torch.no_grad(), Crossings() as crossings:

        class Context(recorder):
            def step(self, step, total):
                super().step(step, total)
                places.append(len(crossings.seen))

        steps = Steps(context=Context(), finished=(), clips=1, generator=noise_source(1))
        made = denoise(pipeline, request, Prompts(positive=text, negative=text), steps, num_frames=9)
    assert made.device.type == "meta"
    assert len(places) == 6
    assert places[0] > 0, "the noise and the timesteps are sent once"
    assert set(places) == {places[0]}, crossings.seen


def test_what_is_counted_is_what_diffusers_own_does():
    scheduler = UniPCMultistepScheduler(**FLOW)
    scheduler.set_timesteps(4, device="meta")
    scheduler.set_begin_index(0)
    sample = torch.empty(1, 16, 1, 2, 2, device="meta")
    with Crossings() as crossings:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(sample, timestep, sample, return_dict=False)[0]
    assert len(crossings.seen) > 2 * 4


def test_a_request_gets_it(video):
    assert type(scheduler_for(video(sample_solver="unipc"))) is UniPC
