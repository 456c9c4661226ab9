"""The payload: names, types and ranges, and what the refusals say."""

import contextlib
import json

import pytest
from hypothesis import given, strategies as st

from tests.sample_jobs import payload
from wan_host.errors import InvalidJob
from wan_host.payload import MAX_SEED, is_path_segment, parse_payload


def refusal(text):
    with pytest.raises(InvalidJob) as caught:
        parse_payload(text if isinstance(text, str | bytes) else json.dumps(text))
    return caught.value


def test_a_complete_payload_of_the_seed_is_read():
    read = parse_payload(json.dumps(payload({"width": 480, "frames": 83}, {"denoise_strength": 0.15})))
    assert (read.id, read.user_id, read.type, read.prompt) == ("job-1", "user-1", "video_fast", "a red circle")
    assert (read.config.width, read.config.frames, read.metadata.denoise_strength) == (480, 83, 0.15)


@pytest.mark.parametrize("field", ["id", "type", "prompt", "user_id"])
def test_required_fields_are_named_when_they_are_missing(field):
    entry = payload()
    del entry[field]
    assert str(refusal(entry)) == f"{field}: None is not allowed; it is required"


def test_null_counts_as_absent_everywhere():
    names = ("width", "steps", "sample_solver", "seed", "loras", "model", "reference_mode", "image", "reference_images")
    entry = payload(dict.fromkeys(names), dict.fromkeys(("denoise_strength", "exact_copy_mode", "seed")))
    entry |= dict.fromkeys(("negative_prompt", "seed", "priority", "deadline", "expires_at"))
    read = parse_payload(json.dumps(entry))
    assert all(getattr(read.config, name) is None for name in names)
    assert parse_payload(json.dumps(payload() | {"config": None, "metadata": None})).config is None


def test_unknown_fields_of_real_producers_are_kept_and_ignored():
    extra = {"compel_enabled": True, "job_id": 5, "quality": "high", "format": None, "nsfw_optimization": [1], "model_config": 1}
    read = parse_payload(json.dumps(payload(extra, {"reference_mode": "modify"}, **extra)))
    assert read.model_extra == extra
    assert read.config.model_extra == extra
    assert read.metadata.model_extra == {"reference_mode": "modify"}


@pytest.mark.parametrize("field", ["id", "user_id"])
@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "a/b", "../etc", "a\\b", "a b", "a\n", "é", "a\0", "%2e%2e", "x" * 129, "a:b", "\u202e", "~"],
)
def test_ids_that_could_leave_their_folder_are_refused(field, value):
    assert str(refusal(payload(**{field: value}))).startswith(f"{field}: ")
    assert not is_path_segment(value)


@pytest.mark.parametrize("value", ["a", "-", "...", "..a", ".hidden", "A-z_0.9", "x" * 128])
def test_odd_but_harmless_ids_are_taken(value):
    assert parse_payload(json.dumps(payload(id=value, user_id=value))).id == value


@pytest.mark.parametrize(
    ("where", "name", "bounds"),
    [
        ("config", "width", (15, 16, 4096, 4097)),
        ("config", "height", (15, 16, 4096, 4097)),
        ("config", "frames", (0, 1, 83, 84)),
        ("config", "fps", (7, 8, 24, 25)),
        ("config", "num_inference_steps", (0, 1, 200, 201)),
        ("config", "steps", (0, 1, 200, 201)),
        ("config", "sample_steps", (0, 1, 200, 201)),
        ("config", "guidance_scale", (-0.1, 0, 30, 30.1)),
        ("config", "sample_guide_scale", (-0.1, 0, 30, 30.1)),
        ("config", "sample_shift", (0, 0.1, 30, 30.1)),
        ("config", "seed", (-1, 0, MAX_SEED, MAX_SEED + 1)),
        ("config", "num_images", (0, 1, 6, 7)),
        ("config", "denoise_strength", (-0.01, 0, 1, 1.01)),
        ("config", "reference_strength", (-0.01, 0, 1, 1.01)),
        ("metadata", "denoise_strength", (-0.01, 0, 1, 1.01)),
        ("metadata", "reference_strength", (-0.01, 0, 1, 1.01)),
        ("metadata", "seed", (-1, 0, MAX_SEED, MAX_SEED + 1)),
        ("", "seed", (-1, 0, MAX_SEED, MAX_SEED + 1)),
        ("", "priority", (-1, 0, 9, 10)),
    ],
)
def test_numbers_are_taken_up_to_their_bounds_and_not_beyond(where, name, bounds):
    below, lowest, highest, above = bounds

    def entry(value):
        return payload(**{where: {name: value}}) if where else payload(**{name: value})

    for value in (lowest, highest):
        read = parse_payload(json.dumps(entry(value)))
        assert getattr(getattr(read, where) if where else read, name) == value
    field = f"{where}.{name}" if where else name
    for value in (below, above):
        assert str(refusal(entry(value))).startswith(f"{field}: {value!r} is not allowed; input should be ")


@pytest.mark.parametrize("value", ["480", True, 480.5, [480], {"value": 480}])
def test_a_size_must_be_a_whole_number_and_nothing_that_could_be_read_as_one(value):
    assert str(refusal(payload({"width": value}))).endswith("input should be a valid integer")


@pytest.mark.parametrize("value", ["6.5", True, [], "NaN"])
def test_guidance_must_be_a_number(value):
    assert "config.guidance_scale: " in str(refusal(payload({"guidance_scale": value})))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(value):
    assert str(refusal(payload({"guidance_scale": value}))).endswith("input should be a finite number")


@pytest.mark.parametrize("value", [1, "true"])
def test_a_switch_is_a_boolean_and_nothing_else(value):
    assert str(refusal(payload(metadata={"exact_copy_mode": value}))).startswith("metadata.exact_copy_mode: ")


def test_an_unknown_solver_is_refused_with_the_ones_there_are():
    assert str(refusal(payload({"sample_solver": "euler"}))) == (
        "config.sample_solver: 'euler' is not allowed; input should be 'unipc' or 'dpm++'"
    )


def test_entries_of_lists_are_named_by_their_place():
    assert str(refusal(payload({"loras": [{"name": "a"}, {"name": "b", "scale": 9}]}))).startswith("config.loras.1.scale: 9 ")
    assert str(refusal(payload({"reference_images": ["a", ""]}))).startswith("config.reference_images.1: '' ")
    assert str(refusal(payload({"reference_images": ["a"] * 5}))).startswith("config.reference_images: ")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "1", b"\xff\xfe", "\ud800", '{"id": "\\ud800"}', '{"a":' * 5000])
def test_what_is_no_json_object_is_refused_in_one_short_line(text):
    message = str(refusal(text))
    assert message.startswith("payload: ")
    assert len(message) < 400
    assert "\n" not in message


def test_a_value_of_ten_megabytes_makes_a_short_message():
    assert len(str(refusal(payload(id="x" * 10_000_000)))) < 400
    assert len(str(refusal(payload({"width": int("9" * 4000)})))) < 400
    assert len(str(refusal('{"id": "' + "x" * 10_000_000))) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON)
def test_arbitrary_json_is_read_or_refused_and_nothing_else(value):
    with contextlib.suppress(InvalidJob):
        parse_payload(json.dumps(value))


@given(text=st.binary(max_size=60) | st.text(max_size=60))
def test_arbitrary_bytes_are_refused(text):
    with pytest.raises(InvalidJob):
        parse_payload(text)
