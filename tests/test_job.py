"""From a payload to a job: every default, every refusal, and nothing clamped in silence."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from tests.sample_jobs import DRAWN_SEED, MODELS, POLICY, TEXT_ONLY, WAN, payload, resolve
from wan_host import FrameProcessor, FrameStep, InvalidJob, Lora, ReferenceMode, UnsupportedRequest, WanHostError
from wan_host.errors import UnknownModel
from wan_host.job import JobPolicy, resolve_job
from wan_host.payload import Payload, PayloadConfig, PayloadMetadata, parse_payload

IMAGES = {"image": "s/i.png", "first_frame": "s/f.png", "last_frame": "s/l.png"}


def refusal(*args, kind=InvalidJob, **fields):
    with pytest.raises(kind) as caught:
        resolve(*args, **fields)
    assert type(caught.value) is kind
    return str(caught.value)


# Types and defaults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "media", "steps", "guidance", "enhance"),
    [
        ("image_fast", "image", 25, 6.5, False),
        ("image_high", "image", 50, 7.5, False),
        ("video_fast", "video", 25, 6.5, False),
        ("video_high", "video", 50, 7.5, False),
        ("image7b_fast_enhanced", "image", 25, 6.5, True),
        ("image7b_high_enhanced", "image", 50, 7.5, True),
        ("video7b_fast_enhanced", "video", 25, 6.5, True),
        ("video7b_high_enhanced", "video", 50, 7.5, True),
    ],
)
def test_each_of_the_eight_types_has_its_defaults(name, media, steps, guidance, enhance):
    job = resolve(type=name)
    request = job.request
    assert (request.media, request.num_inference_steps, request.guidance_scale, job.enhance) == (media, steps, guidance, enhance)
    assert (request.width, request.height, request.fps) == (480, 832, 24)
    assert request.frames == (83 if media == "video" else 1)
    assert (request.sample_solver, request.num_images, request.preset) == ("dpm++", 1, "exact")
    assert (request.negative_prompt, request.loras, request.postprocess) == ("", (), ())
    assert (job.priority, job.expires_at, job.notes) == (0, None, ())


@pytest.mark.parametrize("name", ["video_fast", "video_high"])
def test_the_prefix_of_the_old_worker_is_taken_off_a_type(name):
    assert resolve(type=f"wan_{name}").type == name
    assert resolve(type=f"wan_{name}").request.job_type == name


def test_a_type_that_a_plugin_names_with_the_prefix_stays_as_it_is():
    model = replace(WAN, job_types={"wan_loop": WAN.job_types["video_fast"]})
    assert resolve(type="wan_loop", models={WAN.name: model}).type == "wan_loop"


def test_an_unknown_type_is_refused_with_all_that_there_are_and_the_one_that_was_meant():
    message = refusal(type="video_fats")
    assert message.startswith("type: 'video_fats' is not allowed; model wan-1.3b serves image7b_fast_enhanced, ")
    assert message.endswith("(did you mean 'video_fast'?)")


def test_an_unknown_model_is_refused_with_all_that_there_are_and_the_one_that_was_meant():
    message = refusal({"model": "wan-13b"}, kind=UnknownModel)
    assert message == (
        "config.model: 'wan-13b' is offered by no installed plugin (did you mean 'wan-1.3b'?); there are text-only, wan-1.3b"
    )


def test_an_unknown_default_model_is_blamed_on_the_setting():
    assert refusal(kind=UnknownModel, policy=JobPolicy(default_model="gone")).startswith(
        "WAN_HOST_MODEL: 'gone' is offered by no"
    )


def test_a_model_that_only_enhances_prompts_cannot_be_asked_to_generate():
    assert "'qwen' is offered by no" in refusal({"model": "qwen"}, kind=UnknownModel)


def test_without_any_model_the_message_says_how_to_get_one():
    assert "pip install wan-host-tiny-wan" in refusal(kind=UnknownModel, policy=JobPolicy(), models={})


def test_names_of_megabytes_make_short_messages():
    long = "x" * 1_000_000
    assert len(refusal({"model": long}, kind=UnknownModel)) < 500
    assert len(refusal(type=long)) < 500
    assert len(refusal({"loras": [{"name": long, "path": "b" + long}]})) < 500
    assert len(refusal({"preset": long})) < 500


# Prompts --------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_passed_on_as_it_stands():
    assert resolve(prompt="  Ünïcode\n🎬 ").request.prompt == "  Ünïcode\n🎬 "


def test_a_prompt_may_be_as_long_as_the_setting_says_and_no_longer():
    policy = JobPolicy(default_model=WAN.name, max_prompt_characters=10)
    assert resolve(prompt="x" * 10, policy=policy).request.prompt == "x" * 10
    message = refusal(prompt="x" * 11, policy=policy)
    assert message.startswith("prompt: '11 characters' is not allowed; at most 10 characters")


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_of_ten_megabytes_is_refused_in_a_short_line(field):
    message = refusal(**{field: "x" * 10_000_000})
    assert message.startswith(f"{field}: ")
    assert len(message) < 300


def test_an_empty_prompt_is_for_exact_copies_of_a_reference_only():
    assert "only for an exact copy" in refusal(prompt="")
    assert "only for an exact copy" in refusal(prompt="", metadata={"exact_copy_mode": True})
    assert "only for an exact copy" in refusal(prompt="", config={"image": "s/i.png"}, metadata={"exact_copy_mode": False})
    assert resolve(prompt="", config={"image": "s/i.png"}, metadata={"exact_copy_mode": True}).request.prompt == ""


@pytest.mark.parametrize("top", [None, "", "blurry"])
@pytest.mark.parametrize("inner", [None, "", "blurry"])
def test_a_negative_prompt_is_read_from_either_place(top, inner):
    assert resolve({"negative_prompt": inner}, negative_prompt=top).request.negative_prompt == (top or inner or "")


def test_two_different_negative_prompts_are_refused():
    message = refusal({"negative_prompt": "dark"}, negative_prompt="blurry")
    assert message.startswith("config.negative_prompt: '4 characters' is not allowed; negative_prompt says something else")


# Sizes, lengths, rates ------------------------------------------------------------------------------------------------


def test_what_the_payload_says_wins_over_the_defaults():
    request = resolve({"width": 832, "height": 480, "frames": 1, "fps": 8, "sample_solver": "unipc", "sample_shift": 3.5}).request
    assert (request.width, request.height, request.frames, request.fps) == (832, 480, 1, 8)
    assert (request.sample_solver, request.sample_shift) == ("unipc", 3.5)


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("value", [48, 100, 488, 1296])
def test_a_side_that_the_model_cannot_make_is_refused_and_never_rounded(side, value):
    assert refusal({side: value}) == (
        f"config.{side}: {value} is not allowed; model wan-1.3b takes multiples of 16 from 64 to 1280"
    )


def test_a_size_with_too_many_pixels_is_refused():
    assert refusal({"width": 1280, "height": 736}) == (
        "config.width, config.height: '1280x736' is not allowed; model wan-1.3b takes at most 921600 pixels"
    )
    assert resolve({"width": 1280, "height": 720}).request.height == 720


def test_bounds_are_those_of_the_model_that_was_chosen():
    small = {"model": "text-only", "width": 96, "height": 96, "sample_solver": "unipc"}
    assert resolve(small | {"frames": 17}).request.frames == 17
    assert refusal(small | {"frames": 18}) == "config.frames: 18 is not allowed; model text-only makes 1 to 17"
    assert "multiples of 32" in refusal(small | {"width": 80, "frames": 9})


def test_a_resolution_sets_the_size_of_an_image():
    request = resolve({"resolution": "512x768"}, type="image_fast").request
    assert (request.width, request.height) == (512, 768)


@pytest.mark.parametrize(
    ("config", "job_type", "size"),
    [
        ({"resolution": "512x768", "width": 640}, "image_fast", (640, 832)),
        ({"resolution": "512x768", "height": 640}, "image_fast", (480, 640)),
        ({"resolution": "512x768"}, "video_fast", (480, 832)),
        ({"resolution": {"w": 1}}, "video_fast", (480, 832)),
    ],
)
def test_a_resolution_that_does_not_count_is_noted_and_ignored(config, job_type, size):
    job = resolve(config, type=job_type)
    assert (job.request.width, job.request.height) == size
    assert job.notes == ("config.resolution is not used: it counts in image jobs without width and height",)


@pytest.mark.parametrize(
    "value",
    ["512", "512x", "x512", "512 x 768", "512X768", "1x1", "99999x99999", "\u0665\u0661\u0662x\u0667\u0666\u0668", 512, {}, True],
)
def test_a_resolution_that_is_none_is_refused(value):
    assert refusal({"resolution": value}, type="image_fast").endswith("it must look like 480x832, width first")


def test_a_resolution_keeps_to_the_bounds_too():
    assert refusal({"resolution": "500x768"}, type="image_fast").startswith("config.width: 500 is not allowed; ")


def test_image_jobs_have_one_frame_and_say_so():
    assert resolve({"frames": 1}, type="image_fast").request.frames == 1
    assert refusal({"frames": 83}, type="image_fast") == "config.frames: 83 is not allowed; image jobs have 1"


def test_only_image_jobs_make_several():
    assert resolve({"num_images": 6}, type="image_fast").request.num_images == 6
    assert resolve({"num_images": 1}).request.num_images == 1
    assert refusal({"num_images": 2}).startswith("config.num_images: 2 is not allowed; only image jobs")


# Aliases --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_inference_steps", "steps", "sample_steps"])
def test_steps_go_by_three_names(name):
    assert resolve({name: 7}).request.num_inference_steps == 7


@pytest.mark.parametrize("name", ["guidance_scale", "sample_guide_scale"])
def test_guidance_goes_by_two_names_and_may_be_whole(name):
    guidance = resolve({name: 5}).request.guidance_scale
    assert guidance == 5
    assert isinstance(guidance, float)


def test_aliases_that_agree_are_taken_and_others_refused():
    assert resolve({"steps": 7, "sample_steps": 7, "num_inference_steps": 7}).request.num_inference_steps == 7
    assert refusal({"steps": 7, "sample_steps": 8}) == (
        "config.sample_steps: 8 is not allowed; config.steps says 7; give one of them"
    )
    assert "config.guidance_scale says 5.0" in refusal({"guidance_scale": 5, "sample_guide_scale": 6})


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_without_a_seed_the_drawn_one_is_used():
    assert resolve().request.seed == DRAWN_SEED


@pytest.mark.parametrize("where", [{"config": {"seed": 0}}, {"metadata": {"seed": 0}}, {"seed": 0}])
def test_a_given_seed_is_used_wherever_it_stands_even_zero(where):
    assert resolve(**where).request.seed == 0


def test_seeds_that_differ_are_refused():
    assert refusal({"seed": 1}, {"seed": 2}) == "metadata.seed: 2 is not allowed; config.seed says 1; give one of them"
    assert refusal({"seed": 1}, seed=3) == "seed: 3 is not allowed; config.seed says 1; give one of them"
    assert resolve({"seed": 1}, {"seed": 1}, seed=1).request.seed == 1


# Reference modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(ReferenceMode))
@pytest.mark.parametrize(
    ("config_key", "metadata_key", "source"),
    [("reference_mode", None, "config"), (None, "video_reference_mode", "metadata")],
)
def test_a_mode_is_taken_from_the_config_else_from_the_metadata(mode, config_key, metadata_key, source):
    config = IMAGES | ({config_key: mode.value} if config_key else {})
    job = resolve(config, {metadata_key: mode.value} if metadata_key else {})
    assert (job.request.reference_mode, job.reference_mode_source) == (mode, source)
    expected = {
        "none": {},
        "single": {"image": "s/i.png"},
        "start": {"first_frame": "s/f.png"},
        "end": {"last_frame": "s/l.png"},
        "both": {"first_frame": "s/f.png", "last_frame": "s/l.png"},
    }
    assert job.references == expected[mode.value]


def test_the_config_wins_over_the_metadata():
    job = resolve(IMAGES | {"reference_mode": "start"}, {"video_reference_mode": "end"})
    assert (job.request.reference_mode, job.reference_mode_source) == (ReferenceMode.START, "config")


@pytest.mark.parametrize("given", ["modify", "", "SINGLE", "x" * 100_000, 1, True, [], {}, ["single"]])
def test_a_mode_that_is_none_of_the_five_is_noted_and_ignored(given):
    job = resolve({"reference_mode": given, "first_frame": "s/f.png"}, {"video_reference_mode": given})
    assert (job.request.reference_mode, job.reference_mode_source) == (ReferenceMode.START, "inferred")
    assert [note.split(":")[0] for note in job.notes] == ["config.reference_mode", "metadata.video_reference_mode"]
    assert all(len(note) < 250 for note in job.notes)
    fallen = resolve({"reference_mode": given, "first_frame": "s/f.png", "image": "i"}, {"video_reference_mode": "single"})
    assert (fallen.request.reference_mode, fallen.reference_mode_source) == (ReferenceMode.SINGLE, "metadata")


@pytest.mark.parametrize(
    ("present", "mode"),
    [
        ((), "none"),
        (("image",), "single"),
        (("first_frame",), "start"),
        (("last_frame",), "end"),
        (("first_frame", "last_frame"), "both"),
        (("image", "first_frame"), "start"),
        (("image", "last_frame"), "end"),
        (("image", "first_frame", "last_frame"), "both"),
    ],
)
@pytest.mark.parametrize("in_metadata", [False, True])
def test_without_a_mode_the_references_that_are_there_decide(present, mode, in_metadata):
    fallback = {"image": "reference_image_url", "first_frame": "start_reference_url", "last_frame": "end_reference_url"}
    given = {fallback[slot] if in_metadata else slot: IMAGES[slot] for slot in present}
    job = resolve({}, given) if in_metadata else resolve(given)
    assert (job.request.reference_mode, job.reference_mode_source) == (mode, "inferred")
    assert len(job.notes) == (1 if "image" in present and mode != "single" else 0)


def test_an_explicit_none_wins_over_references_and_says_what_it_left():
    job = resolve(IMAGES | {"reference_mode": "none"})
    assert (job.request.reference_mode, job.references) == (ReferenceMode.NONE, {})
    assert job.notes[0] == "config.image (or metadata.reference_image_url) is not used in reference mode none"
    assert len(job.notes) == 3


def test_a_reference_in_the_config_wins_over_its_fallback():
    job = resolve({"image": "s/a.png"}, {"reference_image_url": "s/b.png"})
    assert job.references == {"image": "s/a.png"}


def test_an_empty_reference_is_an_absent_one_as_in_the_old_worker():
    assert resolve({"image": ""}, {"reference_image_url": "s/b.png"}).references == {"image": "s/b.png"}
    assert resolve({"image": "", "first_frame": ""}).request.reference_mode is ReferenceMode.NONE


@pytest.mark.parametrize(
    ("mode", "given", "missing", "fallback"),
    [
        ("single", {}, "image", "reference_image_url"),
        ("single", {"first_frame": "s/f.png"}, "image", "reference_image_url"),
        ("start", {"image": "s/i.png"}, "first_frame", "start_reference_url"),
        ("end", {}, "last_frame", "end_reference_url"),
        ("both", {"first_frame": "s/f.png"}, "last_frame", "end_reference_url"),
        ("both", {"last_frame": "s/l.png"}, "first_frame", "start_reference_url"),
    ],
)
def test_a_mode_without_its_reference_fails_and_never_falls_back(mode, given, missing, fallback):
    message = refusal(given | {"reference_mode": mode})
    assert message == (
        f"config.{missing}: None is not allowed; reference mode {mode} needs it (or metadata.{fallback}): "
        "a URL, a data: URI or a storage path"
    )


def test_image_jobs_take_the_modes_none_and_single_only():
    assert resolve({"image": "s/i.png"}, type="image_fast").request.reference_mode is ReferenceMode.SINGLE
    assert resolve({"reference_mode": "none"}, type="image_fast").request.reference_mode is ReferenceMode.NONE
    assert refusal(IMAGES | {"reference_mode": "start"}, type="image_fast") == (
        "config.reference_mode: 'start' is not allowed; image jobs take none and single"
    )
    assert refusal(IMAGES, {"video_reference_mode": "both"}, type="image_fast").startswith(
        "metadata.video_reference_mode: 'both'"
    )


def test_frames_beside_an_image_job_are_noted_and_ignored():
    job = resolve({"first_frame": "s/f.png"}, type="image_fast")
    assert job.request.reference_mode is ReferenceMode.NONE
    assert job.notes == ("config.first_frame (or metadata.start_reference_url) is not used in reference mode none",)


def test_subject_references_go_on_top_of_any_mode():
    job = resolve({"first_frame": "s/f.png", "reference_images": ["s/1.png", "s/2.png"]})
    assert (job.request.reference_mode, job.subjects) == (ReferenceMode.START, ("s/1.png", "s/2.png"))


# Denoising strength ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "metadata", "expected"),
    [
        ({}, {}, 0.5),
        ({}, {"denoise_strength": 0.15}, 0.15),
        ({"denoise_strength": 0.15}, {}, 0.15),
        ({"denoise_strength": 0}, {}, 0.0),
        ({}, {"reference_strength": 0.9}, 0.1),
        ({"reference_strength": 0}, {}, 1.0),
        ({}, {"denoise_strength": 0.3, "reference_strength": 0.9}, 0.3),
        ({"denoise_strength": 0.3}, {"reference_strength": 0.9}, 0.3),
        ({"denoise_strength": 0.3}, {"denoise_strength": 0.3}, 0.3),
    ],
)
@pytest.mark.parametrize("job_type", ["video_fast", "image_fast"])
def test_the_strength_is_the_one_given_else_from_the_old_name_else_a_half(config, metadata, expected, job_type):
    job = resolve(config | {"image": "s/i.png"}, metadata, type=job_type)
    assert job.denoise_strength == job.request.denoise_strength == pytest.approx(expected)


def test_two_different_strengths_are_refused():
    message = refusal({"image": "i", "denoise_strength": 0.2}, {"denoise_strength": 0.3})
    assert message == "config.denoise_strength: 0.2 is not allowed; metadata.denoise_strength says 0.3; give one of them"
    assert "reference_strength" in refusal({"image": "i", "reference_strength": 0.2}, {"reference_strength": 0.3})


@pytest.mark.parametrize("mode", ["start", "end", "both"])
def test_where_frames_are_kept_the_strength_is_reported_but_does_not_act(mode):
    job = resolve(IMAGES | {"reference_mode": mode}, {"denoise_strength": 0.15})
    assert (job.denoise_strength, job.request.denoise_strength) == (0.15, None)


def test_without_a_reference_there_is_no_strength():
    job = resolve(metadata={"denoise_strength": 0.15})
    assert (job.denoise_strength, job.request.denoise_strength) == (None, None)


@pytest.mark.parametrize(("given", "expected"), [(0.5, 0.05), (0.05, 0.05), (0.01, 0.01), (None, 0.05)])
def test_an_exact_copy_is_the_only_case_that_clamps(given, expected):
    job = resolve({"image": "i"}, {"exact_copy_mode": True, "denoise_strength": given})
    assert job.request.denoise_strength == expected
    assert resolve({"image": "i"}, {"exact_copy_mode": False, "denoise_strength": given}).denoise_strength == (given or 0.5)


# What a model can do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "job_type", "word"),
    [
        ({"loras": [{"name": "a"}]}, "video_fast", "config.loras: model text-only takes no adapters"),
        ({"reference_images": ["a"]}, "video_fast", "config.reference_images: 1 given, model text-only takes at most 0"),
        ({"image": "a"}, "video_fast", "config.reference_mode: model text-only does none, not 'single'"),
        ({"first_frame": "a"}, "video_fast", "config.reference_mode: model text-only does none, not 'start'"),
        ({"image": "a"}, "image_fast", "config.image: model text-only cannot do image-to-image"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_the_models_that_can(config, job_type, word):
    frames = {"frames": 9} if job_type == "video_fast" else {}
    small = {"model": "text-only", "width": 96, "height": 96, "sample_solver": "unipc"} | frames
    able = "; of the installed models, wan-1.3b can; the large one can"
    assert refusal(small | config, type=job_type, kind=UnsupportedRequest) == word + able


def test_models_that_lack_the_type_or_something_else_that_was_asked_are_not_named():
    asked = {"model": "text-only", "width": 96, "height": 96, "frames": 9, "sample_solver": "unipc"}
    asked |= {"loras": [{"name": "a"}], "first_frame": "f"}
    models = {"text-only": replace(TEXT_ONLY, advice=""), "whole": replace(WAN, name="whole")}
    models["other type"] = replace(WAN, name="other type", job_types={"image_fast": WAN.job_types["image_fast"]})
    models["no start"] = replace(WAN, name="no start", reference_modes=TEXT_ONLY.reference_modes)
    assert refusal(asked, models=models, kind=UnsupportedRequest).endswith("no adapters; of the installed models, whole can")


def test_where_no_model_can_none_is_named():
    given = {"model": "text-only", "width": 96, "height": 96, "frames": 9, "sample_solver": "unipc", "reference_images": ["a"]}
    alone = {"text-only": replace(TEXT_ONLY, advice=""), "qwen": MODELS["qwen"]}
    assert refusal(given, models=alone, kind=UnsupportedRequest).endswith("model text-only takes at most 0")


def test_a_solver_that_the_model_lacks_is_refused():
    small = {"model": "text-only", "width": 96, "height": 96, "frames": 9}
    assert refusal(small) == "config.sample_solver: 'dpm++' is not allowed; model text-only has unipc"


def test_presets_are_those_of_the_model_and_exact_where_it_has_none():
    assert resolve({"preset": "fast"}).request.preset == "fast"
    assert refusal({"preset": "turbo"}) == "config.preset: 'turbo' is not allowed; model wan-1.3b has exact, fast"
    small = {"model": "text-only", "width": 96, "height": 96, "frames": 9, "sample_solver": "unipc"}
    assert resolve(small).request.preset == "exact"


def test_loras_are_named_by_name_or_path_with_a_scale():
    loras = resolve(
        {"loras": [{"name": "a"}, {"path": "b.safetensors", "scale": 0.5}, {"name": "c", "scale": None}]}
    ).request.loras
    assert loras == (Lora(name="a"), Lora(name="b.safetensors", scale=0.5), Lora(name="c", scale=1.0))
    assert refusal({"loras": [{}]}).startswith("config.loras.0.name: None is not allowed; ")
    assert refusal({"loras": [{"name": ""}]}).startswith("config.loras.0.name: ")
    assert refusal({"loras": [{"name": "a", "path": "b"}]}).startswith("config.loras.0.path: 'b' is not allowed; ")


def test_frame_processors_are_checked_before_anything_is_generated():
    policy = replace(POLICY, frame_processors={"upscale": FrameProcessor(scale=2)})
    request = resolve({"postprocess": ["upscale"]}, policy=policy).request
    assert (request.frames, request.width, request.height) == (83, 480, 832)
    assert request.postprocess == (FrameStep(plugin="upscale", frames=83, width=960, height=1664),)
    assert refusal({"postprocess": ["upscale", "upscael"]}, policy=policy) == (
        "config.postprocess.1: 'upscael' is not allowed; the installed frame processors are upscale (did you mean 'upscale'?)"
    )


def test_a_frame_processor_is_refused_where_none_is_installed():
    assert refusal({"postprocess": ["upscale"]}).endswith("the installed frame processors are none")


def test_interpolation_has_the_model_make_fewer_frames():
    policy = replace(POLICY, frame_processors={"interpolate": FrameProcessor(rate=2, media=frozenset({"video"}))})
    request = resolve({"postprocess": ["interpolate"], "frames": 41}, policy=policy).request
    assert (request.frames, request.published_frames, request.fps) == (21, 41, 24)


# Priority and expiry --------------------------------------------------------------------------------------------------


def test_a_priority_is_passed_on():
    assert resolve(priority=9).priority == 9


@pytest.mark.parametrize("field", ["deadline", "expires_at"])
@pytest.mark.parametrize(
    "value", [1788220800, 1788220800.0, "2026-09-01T00:00:00Z", "2026-09-01T00:00:00+00:00", "2026-09-01T02:00:00.000+02:00"]
)
def test_an_expiry_is_unix_seconds_or_a_time_with_its_zone(field, value):
    assert resolve(**{field: value}).expires_at == datetime(2026, 9, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("field", ["deadline", "expires_at"])
@pytest.mark.parametrize(
    "value", ["2026-09-01T00:00:00", "2026-09-01", "soon", "", "1788220800", True, [], {}, -1, 1788220800000, 1e300]
)
def test_an_expiry_that_could_be_misread_is_refused(field, value):
    message = refusal(**{field: value})
    assert message.startswith(f"{field}: ")
    assert "Unix seconds or an ISO 8601 time with its zone" in message


def test_of_two_expiries_the_earlier_counts():
    assert resolve(deadline=2e9, expires_at=1e9).expires_at == 1e9


# Anything at all ------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["single", "both", "1x1", 16]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    (
        *PayloadConfig.model_fields,
        *PayloadMetadata.model_fields,
        *Payload.model_fields,
    )
)
BAGS = st.dictionaries(NAMES, VALUES, max_size=5)


@given(top=BAGS, config=BAGS, metadata=BAGS)
def test_whatever_a_payload_holds_it_becomes_a_job_or_a_refusal(top, config, metadata):
    match outcome(json.dumps(payload(config, metadata) | top)):
        case WanHostError() as error:
            assert len(str(error)) < 1000
            assert error.error_type in {"invalid_job", "unknown_model", "unsupported"}
        case job:
            assert job.request.width % 16 == job.request.height % 16 == 0
            assert 1 <= job.request.frames <= 83


def outcome(text):
    try:
        return resolve_job(parse_payload(text), models=MODELS, policy=POLICY, seed=DRAWN_SEED)
    except WanHostError as error:
        return error


@pytest.mark.parametrize(("mode", "frames"), [("none", ()), ("single", (0,)), ("start", (0,)), ("end", (-1,)), ("both", (0, -1))])
def test_a_request_knows_which_published_frames_show_a_reference(mode, frames):
    assert resolve(IMAGES | {"reference_mode": mode}).request.reference_frames == frames
