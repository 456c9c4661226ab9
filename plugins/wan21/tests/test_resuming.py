"""A job that goes on from a checkpoint gives the bits of one that was never disturbed, by every route and solver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.generation import generate
from wan_host_wan21.memory import LADDER
from wan_host_wan21.resuming import restore, save
from wan_host_wan21.turbo import Turbo, scheduler_for

from wan_host import Checkpoint, JobCancelled, ReferenceMode, References


class Keeper:
    """A lane context that keeps every checkpoint, dies after a step, and gives one back to the next attempt."""

    def __init__(self, recorder, *, dies_after=None, goes_on_from=None):
        self._recorder, self._dies_after, self._given = recorder(), dies_after, goes_on_from
        self.kept, self.made_with = {}, {}

    def __getattr__(self, name):
        return getattr(self._recorder, name)

    def resume(self, made_with):
        self.made_with = made_with
        return self._given

    def checkpoint(self, save):
        kept = save()
        arrays = {name: array.copy() for name, array in kept.arrays.items()}
        self.kept[kept.step] = Checkpoint(step=kept.step, arrays=arrays, values=kept.values)
        if kept.step == self._dies_after:
            raise JobCancelled("stop")

    @property
    def steps(self):
        return [event for event in self._recorder.events if event.startswith("step")]


def frames(made):
    return [clip.frames.tobytes() for clip in made.clips]


def check(request, model, recorder, *, after):
    """Run undisturbed, then stopped after a step and gone on with; both must be the same."""
    expected = frames(generate(request, model, recorder()))
    stopped = Keeper(recorder, dies_after=after)
    with pytest.raises(JobCancelled):
        generate(request, model, stopped)
    going_on = Keeper(recorder, goes_on_from=stopped.kept[after])
    made = generate(request, model, going_on)
    assert frames(made) == expected
    return stopped, going_on


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("after", [1, 2, 5, 6])
def test_text_to_video_goes_on_after_any_step(solver, after, t2v, video, recorder):
    request = video(sample_solver=solver, num_inference_steps=6)
    stopped, going_on = check(request, t2v, recorder, after=after)
    assert stopped.steps == [f"step {step}/6" for step in range(1, after + 1)]
    assert going_on.steps == [f"step {step}/6" for step in range(after + 1, 7)]


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_an_image_that_is_denoised_from_another_goes_on(solver, vace, image, picture, recorder):
    request = image(
        sample_solver=solver,
        num_inference_steps=8,
        reference_mode=ReferenceMode.SINGLE,
        references=References(image=picture()),
        denoise_strength=0.6,
    )
    _, going_on = check(request, vace, recorder, after=2)
    assert going_on.steps == ["step 3/4", "step 4/4"]


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_vace_with_a_still_a_subject_and_a_late_start_goes_on(solver, vace, video, picture, recorder):
    request = video(
        sample_solver=solver,
        num_inference_steps=8,
        reference_mode=ReferenceMode.SINGLE,
        references=References(image=picture(), subjects=(picture(3),)),
        denoise_strength=0.3,
    )
    _, going_on = check(request, vace, recorder, after=2)
    assert going_on.steps == ["step 3/4", "step 4/4"]


def test_an_image_to_video_checkpoint_goes_on(load_tiny, video, picture, recorder):
    request = video(
        num_inference_steps=4,
        reference_mode=ReferenceMode.BOTH,
        references=References(first_frame=picture(), last_frame=picture(2)),
    )
    check(request, load_tiny("flf2v"), recorder, after=3)


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_the_finished_images_of_a_job_are_kept(after, vace, image, recorder):
    request = image(num_images=3, num_inference_steps=3)
    stopped, going_on = check(request, vace, recorder, after=after)
    finished = (after - 1) // 3
    assert [name for name in stopped.kept[after].arrays if name.startswith("frames")] == [
        f"frames.{index}" for index in range(finished)
    ]
    assert going_on.steps[0] == f"step {after + 1}/9"


def test_a_checkpoint_of_a_job_that_went_on_is_as_good(t2v, video, recorder):
    request = video(sample_solver="unipc", num_inference_steps=6)
    expected = frames(generate(request, t2v, recorder()))
    first = Keeper(recorder, dies_after=2)
    with pytest.raises(JobCancelled):
        generate(request, t2v, first)
    second = Keeper(recorder, dies_after=4, goes_on_from=first.kept[2])
    with pytest.raises(JobCancelled):
        generate(request, t2v, second)
    assert frames(generate(request, t2v, Keeper(recorder, goes_on_from=second.kept[4]))) == expected


def test_nothing_is_saved_that_the_solver_does_not_read_again(t2v, video, recorder):
    kept = {}
    for solver in ("unipc", "dpm++"):
        keeper = Keeper(recorder)
        generate(video(sample_solver=solver, num_inference_steps=4), t2v, keeper)
        kept[solver] = {name for name in keeper.kept[3].arrays if keeper.kept[3].arrays[name].ndim == 5}
    assert kept["dpm++"] == {"latents", "solver.model_outputs.1"}
    assert kept["unipc"] == {"latents", "solver.model_outputs.0", "solver.model_outputs.1", "solver.last_sample"}


def test_versions_and_the_precision_of_the_weights_are_named(t2v, video, recorder):
    keeper = Keeper(recorder)
    generate(video(num_inference_steps=1), t2v, keeper)
    assert set(keeper.made_with) == {"wan21", "torch", "diffusers", "weights", "adapters"}
    assert (keeper.made_with["weights"], keeper.made_with["adapters"]) == ("exact", "")
    assert all(isinstance(array, np.ndarray) for array in keeper.kept[1].arrays.values())


def test_projections_that_are_fused_are_named_so_that_a_leaner_attempt_begins_anew(load_tiny, video, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_COMPILE", "true")
    monkeypatch.setenv("WAN_HOST_WAN21_WARM_UP", "false")
    model = load_tiny("t2v")
    model.acceleration.compiles_with |= {"backend": "eager"}
    made_with = {}
    for placement in LADDER:
        monkeypatch.setattr(model.placer, "_settings", model.settings.model_copy(update={"placement": placement}))
        keeper = Keeper(recorder)
        generate(video(num_inference_steps=1), model, keeper)
        made_with[placement] = keeper.made_with
    assert made_with["text_off"] == made_with["resident"]
    assert made_with["resident"] == made_with["lean"] | {"fused": "True"} != made_with["lean"]


def test_what_decodes_is_named_as_finished_clips_depend_on_it(vace, image, recorder, monkeypatch):
    made_with = []
    for facts in ({}, {"decode_fused": True}):
        monkeypatch.setattr(vace.decoder, "facts", facts)
        keeper = Keeper(recorder)
        report = generate(image(num_images=2), vace, keeper).metadata
        assert facts.items() <= report.items()
        made_with.append(keeper.made_with)
    assert made_with[1] == made_with[0] | {"decode_fused": "True"} != made_with[0]


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_the_fast_preset_goes_on_from_every_step_that_it_offers(solver, vace, video, recorder):
    request = video(sample_solver=solver, num_inference_steps=20, preset="fast")
    whole = Keeper(recorder)
    expected = frames(generate(request, vace, whole))
    assert len(whole.kept) >= 2
    for step, kept in whole.kept.items():
        assert frames(generate(request, vace, Keeper(recorder, goes_on_from=kept))) == expected, f"step {step}"


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_the_few_steps_of_turbo_go_on(sampler, done):
    turbo = Turbo(path=Path(), sampler=sampler, sigmas=(1.0, 0.75, 0.5, 0.25))
    predictions = torch.randn(4, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(3))

    def run(scheduler, latents, predictions):
        scheduler.set_timesteps(4)
        for prediction, timestep in zip(predictions, scheduler.timesteps, strict=True):
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    noise = torch.Generator().manual_seed(5)
    expected = run(scheduler_for(turbo, noise), predictions[0], predictions)
    noise = torch.Generator().manual_seed(5)
    scheduler = scheduler_for(turbo, noise)
    scheduler.set_timesteps(4)
    latents = predictions[0]
    for prediction, timestep in zip(predictions[:done], scheduler.timesteps[:done], strict=True):
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    kept = restore(save(step=done, done=done, clips=(), latents=latents, generator=noise, scheduler=scheduler)).start
    other = torch.Generator()
    other.set_state(kept.generator)
    assert torch.equal(run(kept.schedule(scheduler_for(turbo, other)), kept.latents, predictions[done:]), expected)
