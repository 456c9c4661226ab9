"""A job's clips: as many as asked for, of the size asked for, from the parameters given, whatever ran before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: TID253  # a test of torch code
from wan_host_wan21.generation import generate
from wan_host_wan21.sampling import generated_frames

from wan_host import GenerationFailed, JobCancelled, Lora, ReferenceMode, References, UnsupportedRequest


@pytest.mark.parametrize(("frames", "made"), [(1, 1), (2, 5), (5, 5), (6, 9), (81, 81), (82, 85), (83, 85)])
def test_the_next_4k_plus_1_frames_are_generated(frames, made):
    assert generated_frames(frames) == made


@pytest.mark.parametrize("kind", ["t2v", "vace"])
@pytest.mark.parametrize("frames", [1, 7, 9])
def test_a_video_has_exactly_the_frames_and_size_asked_for(kind, frames, video, recorder, request):
    model = request.getfixturevalue(kind)
    made = generate(video(frames=frames), model, recorder())
    (clip,) = made.clips
    assert clip.frames.shape == (frames, 48, 32, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.seed == 7
    assert made.metadata["generated_frames"] == generated_frames(frames)


def test_images_are_numbered_by_their_seeds(vace, image, recorder):
    both = generate(image(num_images=2), vace, recorder())
    second = generate(image(seed=8), vace, recorder())
    assert [clip.seed for clip in both.clips] == [7, 8]
    assert np.array_equal(both.clips[1].frames, second.clips[0].frames)
    assert not np.array_equal(both.clips[0].frames, both.clips[1].frames)


def test_every_parameter_has_an_effect(vace, video, recorder):
    changes = [
        {},
        {"num_inference_steps": 4},
        {"guidance_scale": 7.0},
        {"sample_shift": 3.0},
        {"sample_solver": "unipc"},
        {"negative_prompt": "dark and small"},
        {"prompt": "a blue square"},
        {"seed": 8},
        {"guidance_scale": 1.0},
    ]
    made = [generate(video(**change), vace, recorder()).clips[0].frames.tobytes() for change in changes]
    assert len(set(made)) == len(changes)


def test_the_same_request_gives_the_same_frames_whatever_ran_before(vace, video, image, recorder):
    first = generate(video(), vace, recorder()).clips[0].frames
    generate(image(sample_solver="unipc", seed=3), vace, recorder())
    generate(video(frames=5, prompt="something else", num_inference_steps=2), vace, recorder())
    assert np.array_equal(generate(video(), vace, recorder()).clips[0].frames, first)


def test_the_prompts_used_last_are_kept(load_tiny, monkeypatch):
    monkeypatch.setattr("wan_host_wan21.embeddings._KEPT", 2)
    embeddings = load_tiny("t2v").embeddings
    with torch.no_grad():
        for text in ("one", "two", "one", "three"):
            assert embeddings.encode(text) is embeddings.encode(text)
    assert [text in embeddings for text in ("one", "two", "three")] == [True, False, True]


def test_steps_and_stages_are_told(vace, image, recorder):
    context = recorder()
    generate(image(num_images=2, prompt="a prompt of its own", num_inference_steps=2), vace, context)
    assert [event for event in context.events if event.startswith("step")] == ["step 1/4", "step 2/4", "step 3/4", "step 4/4"]
    stages = [event for event in context.events if event.startswith("stage")]
    assert stages == ["stage text_encode", *["stage denoise", "stage decode"] * 2]
    assert "encoding the prompt" in context.events
    assert context.events.count("decoding") == 2


@pytest.mark.parametrize("moment", ["encoding the prompt", "denoising", "step 2/3", "decoding"])
def test_a_cancel_ends_the_job_at_once_and_leaves_no_trace(moment, vace, video, recorder):
    before = generate(video(), vace, recorder()).clips[0].frames
    context = recorder(stop_at=moment, error=JobCancelled("stop"))
    with pytest.raises(JobCancelled):
        generate(video(prompt=f"cancelled at {moment}", seed=99), vace, context)
    assert context.events[-1] == moment
    assert past_frames(vace) == []
    assert np.array_equal(generate(video(), vace, recorder()).clips[0].frames, before)


def past_frames(model):
    """Return what the VAE's halves hold of a clip."""
    return [*model.encoder._walk._past, *model.decoder._walk._past]


def test_a_cancel_leaves_no_block_on_the_device_that_comes_for_its_own_pass(load_tiny, video, recorder, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "lean")
    model = load_tiny("t2v")
    with pytest.raises(JobCancelled):
        generate(video(), model, recorder(stop_at="step 2/3", error=JobCancelled("stop")))
    assert model.placer.transformer_blocks.attached
    assert model.placer.transformer_blocks._slots == []


def test_a_cancel_while_references_are_encoded_leaves_no_trace(vace, video, picture, recorder):
    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    before = generate(wanted, vace, recorder()).clips[0].frames
    context = recorder(stop_at="encoding with the VAE", error=JobCancelled("stop"))
    with pytest.raises(JobCancelled):
        generate(
            video(frames=5, reference_mode=ReferenceMode.START, references=References(first_frame=picture(2))), vace, context
        )
    assert past_frames(vace) == []
    assert np.array_equal(generate(wanted, vace, recorder()).clips[0].frames, before)


@pytest.mark.parametrize("moment", ["encoding with the VAE", "decoding"])
def test_a_cancel_between_two_chunks_of_the_vae_leaves_no_trace(moment, vace, video, picture, recorder):
    """By then its layers hold features of the chunk before."""

    class Second(recorder):
        def _note(self, event):
            self.events.append(event)
            if self.events.count(moment) == 2:
                raise JobCancelled("stop")

    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    before = generate(wanted, vace, recorder()).clips[0].frames
    context = Second()
    with pytest.raises(JobCancelled):
        generate(video(frames=13, reference_mode=ReferenceMode.END, references=References(last_frame=picture(2))), vace, context)
    assert context.events[-1] == moment
    assert past_frames(vace) == []
    assert np.array_equal(generate(wanted, vace, recorder()).clips[0].frames, before)


def test_frames_that_the_decoder_leaves_out_are_no_clip(vace):
    room = np.zeros((9, 48, 32, 3), np.uint8)
    with pytest.raises(GenerationFailed, match="the decoder made 5 frames; the clip has 9"), torch.no_grad():
        vace.decoder.decode(torch.zeros(1, 16, 2, 6, 4), lambda: room, lambda _: None)


def test_a_mode_that_the_checkpoint_cannot_do_is_refused_with_one_that_can(t2v, video, picture, recorder):
    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture()))
    with pytest.raises(UnsupportedRequest, match=r"cannot do start, only none; .*Wan-AI/Wan2.1-VACE-1.3B-diffusers"):
        generate(wanted, t2v, recorder())


def test_a_prompt_beyond_512_tokens_is_said_to_be_cut(vace, image, recorder):
    assert "prompt_truncated_tokens" not in generate(image(), vace, recorder()).metadata
    assert generate(image(prompt="x" * 600), vace, recorder()).metadata["prompt_truncated_tokens"] > 80


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        (20.0, {}),
        (1.0, {"negative_prompt_applied": False}),
        (0.5, {"guidance_scale_acted": 1.0, "negative_prompt_applied": False}),
        (0.0, {"guidance_scale_acted": 1.0, "negative_prompt_applied": False}),
    ],
)
def test_the_report_has_the_guidance_that_acted(guidance, said, vace, image, recorder):
    """At 1 and below there is none, in diffusers as in Wan's own code: what was asked for must not stand alone in the report."""
    one, other = (generate(image(guidance_scale=guidance, negative_prompt=text), vace, recorder()) for text in ("blurry", "dark"))
    names = {"guidance_scale_acted", "negative_prompt_applied"}
    assert {name: value for name, value in one.metadata.items() if name in names} == said
    assert np.array_equal(one.clips[0].frames, other.clips[0].frames) is (guidance <= 1)
    silent = generate(image(guidance_scale=guidance, negative_prompt=""), vace, recorder()).metadata
    assert "negative_prompt_applied" not in silent


def test_a_copy_reports_nothing_that_did_not_act(*, vace, image, picture, recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(vace.loras, "_settings", vace.settings.model_copy(update={"loras_dir": tmp_path}))
    copy = image(reference_mode=ReferenceMode.SINGLE, references=References(image=picture()), denoise_strength=0.0)
    copy = replace(copy, prompt="x" * 600, guidance_scale=0.5, loras=(Lora(name="any"),))
    with pytest.raises(UnsupportedRequest, match=r"config.loras\[0\]: there is no adapter 'any'"):
        generate(copy, vace, recorder())
    (tmp_path / "any.safetensors").touch()
    said = {"route": "copy", "generated_frames": 1, "steps_run": 0, "random_weights": True}
    assert generate(copy, vace, recorder()).metadata == said | {"negative_prompt_applied": False}
    assert generate(replace(copy, negative_prompt=""), vace, recorder()).metadata == said


def test_subjects_are_counted_in_the_report(vace, video, picture, recorder):
    both = References(first_frame=picture(1), last_frame=picture(2), subjects=tuple(picture(seed) for seed in range(3, 7)))
    made = generate(video(reference_mode=ReferenceMode.BOTH, references=both), vace, recorder())
    assert (made.metadata["subject_references"], made.metadata["pinned"]) == (4, True)
    assert np.array_equal(made.clips[0].frames[0], picture(1))
    assert np.array_equal(made.clips[0].frames[-1], picture(2))


def test_random_weights_are_said_to_be_random(vace, image, recorder):
    assert generate(image(), vace, recorder()).metadata["random_weights"] is True
