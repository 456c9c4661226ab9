"""References as effects: what is conditioned, what is refused, and how the denoise strength weighs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.checkpoint import Checkpoint, Kind
from wan_host_wan21.generation import generate
from wan_host_wan21.references import Route, control_video, on_canvas, plan
from wan_host_wan21.routes import _from_still, latents_for
from wan_host_wan21.sampling import Prompts, Steps, noise_source
from wan_host_wan21.solvers import steps_run

from wan_host import ReferenceMode, References, UnsupportedRequest


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(path=tmp_path, kind=Kind.VACE, heads=2)


@pytest.fixture
def latents(vace, recorder):
    """Return a function from a request to the latents of its clip: a random VAE hides in pixels what latents show."""

    def made(request):
        steps = Steps(context=recorder(), finished=(), clips=1, generator=noise_source(request.seed))
        with vace.job(recorder()):
            prompts = Prompts(positive=vace.embeddings.encode(request.prompt), negative=vace.embeddings.encode(""))
            chosen = plan(request, vace.checkpoint, "tiny")
            return latents_for(chosen, request, vace, prompts, seed=request.seed, steps=steps)

    return made


def single(request, image, strength):
    return replace(request, reference_mode=ReferenceMode.SINGLE, references=References(image=image), denoise_strength=strength)


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_every_mode_conditions_and_depends_on_its_image(mode, video, picture, latents):
    def references(seed):
        frame = picture(seed)
        return References(image=frame, first_frame=frame, last_frame=frame)

    plain = latents(video())
    one, other = (latents(video(reference_mode=ReferenceMode(mode), references=references(seed))) for seed in (1, 2))
    assert plain.shape == one.shape
    assert not plain.equal(one)
    assert not one.equal(other)


def test_explicit_none_ignores_images_that_are_present(video, picture, latents):
    assert latents(video(references=References(image=picture()))).equal(latents(video()))


@pytest.mark.parametrize(("frames", "held"), [(9, [8]), (7, [6, 7, 8]), (83, [82, 83, 84])])
def test_the_last_frame_stands_where_it_is_published(frames, held, checkpoint, video, picture):
    wanted = video(frames=frames, reference_mode=ReferenceMode.END, references=References(last_frame=picture()))
    shown, mask = control_video(plan(wanted, checkpoint, "tiny"), frames, 32, 48)
    assert [index for index in range(len(mask)) if not mask[index].any()] == held
    assert all(np.array_equal(shown[index], picture()) for index in held)
    assert (shown[0] == 128).all()


def test_a_mode_without_its_image_is_refused_by_name(checkpoint, video):
    with pytest.raises(UnsupportedRequest, match=r"config\.last_frame"):
        plan(video(reference_mode=ReferenceMode.BOTH, references=References(first_frame=np.zeros((48, 32, 3), np.uint8))),
             checkpoint, "tiny")  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.VACE, Kind.FLF2V])
def test_one_frame_cannot_be_the_first_and_the_last(kind, checkpoint, video, picture):
    """A clip of the first alone would be reported as one of both."""
    wanted = video(reference_mode=ReferenceMode.BOTH, references=References(first_frame=picture(), last_frame=picture(1)))
    with pytest.raises(UnsupportedRequest, match=r"^config\.frames: 1 frame cannot be first and last"):
        plan(replace(wanted, frames=1), replace(checkpoint, kind=kind), "tiny")
    assert plan(replace(wanted, frames=2), replace(checkpoint, kind=kind), "tiny").last is not None


def test_a_text_checkpoint_refuses_subjects_and_modes_but_takes_image_to_image(t2v, video, image, picture, recorder):
    with pytest.raises(UnsupportedRequest, match=r"config\.reference_images: tiny takes none, Wan-AI/Wan2\.1-VACE"):
        generate(video(references=References(subjects=(picture(),))), t2v, recorder())
    with pytest.raises(UnsupportedRequest, match="cannot do single"):
        generate(single(video(), picture(), 0.5), t2v, recorder())
    assert generate(single(image(), picture(), 0.5), t2v, recorder()).metadata["route"] == "image_to_image"


def test_more_than_four_subjects_are_refused(vace, video, picture, recorder):
    with pytest.raises(UnsupportedRequest, match="5 given; tiny takes up to 4"):
        generate(video(references=References(subjects=(picture(),) * 5)), vace, recorder())


@pytest.mark.parametrize("kind", ["image", "video"])
def test_strength_0_returns_the_source(kind, vace, picture, recorder, request):
    wanted = single(request.getfixturevalue(kind)(), picture(), 0.0)
    made = generate(wanted, vace, recorder())
    assert all(np.array_equal(frame, picture()) for frame in made.clips[0].frames)
    assert made.clips[0].frames.shape[0] == wanted.frames
    assert (made.metadata["route"], made.metadata["steps_run"]) == ("copy", 0)


def test_strength_0_makes_as_many_copies_as_images_were_asked_for(vace, image, picture, recorder):
    made = generate(single(image(num_images=3), picture(), 0.0), vace, recorder())
    assert [clip.seed for clip in made.clips] == [7, 8, 9]
    assert all(np.array_equal(clip.frames[0], picture()) for clip in made.clips)


def test_an_image_job_in_a_mode_for_videos_is_refused(checkpoint, image, picture):
    with pytest.raises(UnsupportedRequest, match=r"config\.reference_mode: start is for videos; images take none and single"):
        plan(image(reference_mode=ReferenceMode.START, references=References(first_frame=picture())), checkpoint, "tiny")


def test_above_one_half_the_report_has_the_weight_and_the_frame_is_pinned_by_it(vace, video, picture, recorder):
    frames = {s: generate(single(video(), picture(), s), vace, recorder()) for s in (0.5, 0.75)}
    assert frames[0.75].metadata["conditioning_scale"] == 0.5
    assert "conditioning_scale" not in frames[0.5].metadata
    assert np.array_equal(frames[0.5].clips[0].frames[0], picture())
    assert 2 < np.abs(frames[0.75].clips[0].frames[0].astype(int) - picture()).mean() < 60, "half of the way"


def test_a_strength_too_small_for_a_step_runs_one(vace, image, picture, recorder):
    context = recorder()
    made = generate(single(image(num_inference_steps=49), picture(), 0.001), vace, context)
    assert [event for event in context.events if event.startswith("step")] == ["step 1/1"]
    assert made.metadata["steps_run"] == 1


@pytest.mark.parametrize(("strength", "run"), [(0.01, 1), (0.05, 1), (0.5, 12), (0.999, 24), (1.0, 25), (1.5, 25)])
def test_steps_run_as_the_pipeline_counts_them(strength, run):
    assert steps_run(25, strength) == run


def test_the_strength_of_image_to_image_is_monotone(image, picture, latents):
    """The farther from the source, the greater the strength, over latents of a few seeds."""
    strengths = (0.2, 0.4, 0.6, 0.8, 1.0)
    request = image(num_inference_steps=5, guidance_scale=1.0)
    source = latents(single(request, picture(), 0.001))
    distances = [
        np.mean([float((latents(single(replace(request, seed=seed), picture(), s)) - source).norm()) for seed in range(3)])
        for s in strengths
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 1.3 * distances[0]


def test_the_strength_of_single_weighs_the_image(video, picture, latents, checkpoint):
    """Below one half the clip nears the still image, above it the adapter's weight falls to nothing."""
    plans = [plan(single(video(), picture(), s), checkpoint, "tiny") for s in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert [p.strength for p in plans] == [0.2, 0.5, 1.0, 1.0, 1.0]
    assert [p.scale for p in plans] == [1.0, 1.0, 1.0, 0.5, 0.0]
    request = video(num_inference_steps=5, guidance_scale=1.0)
    still = latents(single(request, picture(), 0.01))
    near, middle, full = (float((latents(single(request, picture(), s)) - still).norm()) for s in (0.1, 0.3, 0.5))
    assert near < middle < full
    text = latents(request)
    assert latents(single(request, picture(), 1.0)).allclose(text, atol=1e-4)


def test_subjects_go_with_image_to_image(vace, image, picture, recorder):
    wanted = replace(
        image(num_inference_steps=4),
        reference_mode=ReferenceMode.SINGLE,
        references=References(image=picture(), subjects=(picture(3, 90, 70), picture(4))),
        denoise_strength=0.5,
    )
    context = recorder()
    made = generate(wanted, vace, context)
    assert made.clips[0].frames.shape == (1, 48, 32, 3)
    assert made.metadata["route"] == Route.CONDITIONED
    assert [event for event in context.events if event.startswith("step")] == ["step 1/2", "step 2/2"]


@pytest.mark.parametrize("subjects", [0, 1])
def test_each_of_several_images_from_one_picture_is_that_of_its_own_seed(subjects, vace, image, picture, recorder):
    references = References(image=picture(), subjects=tuple(picture(3) for _ in range(subjects)))
    wanted = replace(
        image(num_images=2, num_inference_steps=4),
        reference_mode=ReferenceMode.SINGLE,
        references=references,
        denoise_strength=0.5,
    )
    first, second = generate(wanted, vace, recorder()).clips
    (alone,) = generate(replace(wanted, num_images=1, seed=second.seed), vace, recorder()).clips
    assert np.array_equal(second.frames, alone.frames)
    assert not np.array_equal(second.frames, first.frames)


def test_a_subject_is_shown_whole_on_white(picture):
    canvas = np.asarray(on_canvas(np.zeros((10, 20, 3), np.uint8), 32, 48))
    assert canvas.shape == (48, 32, 3)
    assert (canvas[:16] == 255).all()
    assert (canvas[20:28] == 0).all()
    whole = picture()
    assert np.array_equal(np.asarray(on_canvas(whole, 32, 48)), whole)


def test_the_control_latents_that_no_image_changes_are_encoded_once(*, vace, video, picture, recorder, load_tiny, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PREVIEWS", "false")
    model = load_tiny("vace")
    encoded = []
    for seed in (1, 2):
        context = recorder()
        wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture(seed)))
        first = generate(wanted, model, context)
        encoded.append(context.events.count("encoding with the VAE"))
    assert encoded == [6, 3]
    assert np.array_equal(first.clips[0].frames, generate(wanted, vace, recorder()).clips[0].frames)


def test_kept_control_latents_are_those_of_the_size_the_length_and_the_mask(load_tiny, video, picture, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PIN_FRAMES", "false")
    model, frame, wide = load_tiny("vace"), picture(1), picture(1, 32, 48)
    jobs = [
        video(reference_mode=ReferenceMode.START, references=References(first_frame=frame)),
        video(reference_mode=ReferenceMode.END, references=References(last_frame=frame)),
        video(reference_mode=ReferenceMode.BOTH, references=References(first_frame=frame, last_frame=frame)),
        video(reference_mode=ReferenceMode.START, references=References(first_frame=frame), frames=5),
        video(reference_mode=ReferenceMode.END, references=References(last_frame=frame), frames=7),
        video(reference_mode=ReferenceMode.START, references=References(first_frame=wide), width=48, height=32),
    ]
    after_others = [_control(job, model, recorder) for job in jobs]
    for job, control in zip(jobs, after_others, strict=True):
        model.pipelines[Route.CONDITIONED]._reactive.clear()
        assert control.equal(_control(job, model, recorder))


def test_the_oldest_kept_control_latents_go_first(vace, video, picture, recorder, monkeypatch):
    monkeypatch.setattr("wan_host_wan21.vace._KEPT", 2)
    monkeypatch.setattr(vace.pipelines[Route.CONDITIONED], "_reactive", None)
    start = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    for frames in (5, 9, 5, 13):
        _control(replace(start, frames=frames), vace, recorder)
    assert [key[2] for key in vace.pipelines[Route.CONDITIONED]._reactive] == [5, 13]


def _control(request, model, recorder):
    """Return the control latents that a request was denoised with."""
    pipeline, found = model.pipelines[Route.CONDITIONED], []
    prepare = pipeline.prepare_video_latents

    def noting(*args, **options):
        found.append(prepare(*args, **options))
        return found[-1]

    pipeline.prepare_video_latents = noting
    try:
        generate(replace(request, num_inference_steps=1), model, recorder())
    finally:
        del pipeline.prepare_video_latents
    return found[0]


def test_a_late_start_has_its_subjects_where_the_pipeline_puts_them(vace, video, picture, recorder):
    """Two orders of the same subjects: the noised starts must differ as the control latents do."""
    starts, controls = [], []
    for subjects in ((picture(3), picture(4)), (picture(4), picture(3))):
        request = single(video(num_inference_steps=50), picture(), 0.01)
        request = replace(request, references=References(image=picture(), subjects=subjects))
        steps = Steps(context=recorder(), finished=(), clips=1, generator=noise_source(request.seed))
        with vace.job(recorder()):
            starts.append(_from_still(plan(request, vace.checkpoint, "tiny"), request, vace, request.seed, steps)["latents"])
        controls.append(_control(request, vace, recorder)[:, :16])
    for index in (0, 1):
        ours, theirs = ((one[:, :, index] - other[:, :, index]).flatten() for one, other in (starts, controls))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
