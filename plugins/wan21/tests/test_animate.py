"""Image-to-video checkpoints: recognised, used for what they can do, refused for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from wan_host_wan21.catalogue import describe
from wan_host_wan21.checkpoint import Kind, recognise
from wan_host_wan21.generation import generate
from wan_host_wan21.settings import CustomModel, Defaults

from wan_host import ModelLoadFailed, ReferenceMode, References, UnsupportedRequest


@pytest.fixture(scope="module")
def fun(load_tiny):
    return load_tiny("fun_inp")


@pytest.mark.parametrize(("kind", "modes"), [("flf2v", {"both"}), ("fun_inp", {"single", "start", "both"})])
def test_they_are_recognised_and_offered_for_videos_alone(kind, modes, tiny_folder):
    checkpoint = recognise(tiny_folder(kind))
    assert checkpoint.kind == kind
    info = describe("mine", checkpoint, "")
    assert info.reference_modes == modes
    assert {defaults.media for defaults in info.job_types.values()} == {"video"}
    assert not info.image_to_image
    assert info.job_types["video_fast"].sample_shift == (16.0 if kind == "flf2v" else 5.0)
    row = CustomModel(path="mine", defaults=Defaults(sample_shift=7.0))
    assert describe("mine", checkpoint, "", row).job_types["video_fast"].sample_shift == 7.0


def test_the_size_tells_image_to_video_from_fun_inp(tiny_folder, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(tiny_folder("i2v"), tmp_path / "copy")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 40}))
    assert recognise(folder).kind is Kind.I2V
    (folder / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="image_encoder holds no safetensors"):
        recognise(folder)
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(ModelLoadFailed, match="image_encoder missing"):
        recognise(folder)


@pytest.mark.parametrize("mode", ["start", "both", "single"])
def test_each_mode_is_pinned_and_depends_on_its_images(mode, fun, video, picture, recorder):
    def made(first, last):
        references = References(image=picture(first), first_frame=picture(first), last_frame=picture(last))
        return generate(video(frames=7, reference_mode=ReferenceMode(mode), references=references), fun, recorder())

    one, other = made(1, 2), made(3, 2)
    assert one.metadata["route"] == "image_to_video"
    assert np.array_equal(one.clips[0].frames[0], picture(1))
    assert np.array_equal(one.clips[0].frames[-1], picture(2)) == (mode == "both")
    assert not np.array_equal(one.clips[0].frames[3], other.clips[0].frames[3])


def test_what_they_cannot_do_is_refused(fun, video, image, picture, recorder):
    for wanted, message in (
        (video(), "cannot do none, only both, single, start"),
        (video(reference_mode=ReferenceMode.END, references=References(last_frame=picture())), "cannot do end"),
        (image(), "makes videos only"),
        (video(references=References(subjects=(picture(),))), "config.reference_images"),
    ):
        with pytest.raises(UnsupportedRequest, match=message):
            generate(wanted, fun, recorder())


def test_the_strength_of_single_acts_up_to_one_half_and_the_report_says_so(fun, video, picture, recorder):
    request = video(reference_mode=ReferenceMode.SINGLE, references=References(image=picture()), num_inference_steps=4)
    made = {s: generate(replace(request, denoise_strength=s), fun, recorder()) for s in (0.25, 0.5, 0.9)}
    assert (made[0.25].metadata["steps_run"], made[0.5].metadata["steps_run"]) == (2, 4)
    assert np.array_equal(made[0.5].clips[0].frames, made[0.9].clips[0].frames)
    assert made[0.9].metadata["denoise_strength_acted"] == 0.5
    assert "denoise_strength_acted" not in made[0.5].metadata
