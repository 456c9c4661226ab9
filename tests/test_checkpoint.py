"""The file of an unfinished job: whole, its own job's, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.lanes import lane_fakes
from wan_host.checkpoint import Checkpoint, CheckpointRejected, identify, read, step_of, write
from wan_host.model import ModelInfo, ReferenceMode
from wan_host.request import Lora, References

IDENTITY = {"job": "job-1", "request": "abc", "device": "NVIDIA H100"}
MODEL = ModelInfo(name="tiny", family="wan", runner="wan21", path="/models/tiny", options={"adapters": [("a", 1.0)]})


def request(**changes):
    """A request with what a digest must look into."""
    return lane_fakes.request(
        **{"references": References(image=np.zeros((8, 8, 3), np.uint8)), "loras": (Lora(name="a"),), **changes}
    )


@pytest.fixture
def kept():
    rng = np.random.default_rng(0)
    arrays = {
        "latents": rng.normal(size=(1, 4, 3, 2, 2)).astype(np.float32),
        "frames": rng.integers(0, 255, (2, 4, 4, 3), np.uint8),
        "scalar": np.asarray(3.5),
        "turned": rng.normal(size=(3, 5)).T,
    }
    return Checkpoint(step=12, arrays=arrays, values={"done": 12, "seeds": [7, 8], "none": None, "half": 0.1})


def test_what_was_written_is_read(tmp_path, kept):
    path = tmp_path / "new" / "job-1.safetensors"
    write(path, kept, IDENTITY)
    found = read(path, IDENTITY)
    assert (found.step, found.values) == (12, kept.values)
    assert found.arrays.keys() == kept.arrays.keys()
    for name, array in kept.arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found.arrays[name], array)
    assert step_of(path) == 12
    assert [item.name for item in path.parent.iterdir()] == ["job-1.safetensors"]


def test_without_a_file_there_is_nothing_to_go_on_from(tmp_path):
    assert read(tmp_path / "none", IDENTITY) is None
    assert step_of(tmp_path / "none") == 0


def test_one_that_cannot_be_written_leaves_the_older_one(tmp_path, kept):
    path = tmp_path / "job-1.safetensors"
    write(path, kept, IDENTITY)
    with pytest.raises(ValueError, match="JSON"):
        write(path, replace(kept, values={"nan": float("nan")}), IDENTITY)
    assert read(path, IDENTITY).step == 12
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"job": "job-2"}, "its job is 'job-1', this attempt's is 'job-2'"),
        ({"device": "NVIDIA L40S"}, "its device is 'NVIDIA H100', this attempt's is 'NVIDIA L40S'"),
        ({"torch (runner)": "2.14"}, "its torch .runner. is 'None', this attempt's is '2.14'"),
    ],
)
def test_one_that_was_made_for_something_else_is_rejected_with_what_differs(tmp_path, kept, changed, reason):
    write(tmp_path / "a", kept, IDENTITY)
    with pytest.raises(CheckpointRejected, match=reason):
        read(tmp_path / "a", {**IDENTITY, **changed})


def test_no_damage_goes_unseen(tmp_path, kept):
    path = tmp_path / "a"
    write(path, kept, IDENTITY)
    whole = path.read_bytes()
    rng = random.Random(3)
    places = [*range(24), *(rng.randrange(len(whole)) for _ in range(300)), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(CheckpointRejected):
            read(path, IDENTITY)
        assert isinstance(step_of(path), int)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 900])
def test_a_torn_file_is_damaged(tmp_path, kept, length):
    path = tmp_path / "a"
    write(path, kept, IDENTITY)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointRejected, match="damaged"):
        read(path, IDENTITY)


def test_other_files_are_no_checkpoints(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "weights", {"format": "pt"})
    (tmp_path / "text").write_text("this job has ended\n")
    for name in ("weights", "text"):
        with pytest.raises(CheckpointRejected, match="damaged"):
            read(tmp_path / name, IDENTITY)
        assert step_of(tmp_path / name) == 0


def test_the_fingerprint_follows_what_makes_the_clip_and_not_the_attempt():
    same = identify(request(), MODEL, {"wan-host": "1"})
    assert (
        identify(request(attempt=2, references=References(image=np.zeros((8, 8, 3), np.uint8))), MODEL, {"wan-host": "1"}) == same
    )
    pixel = np.zeros((8, 8, 3), np.uint8)
    pixel[0, 0, 0] = 1
    others = [
        identify(changed, MODEL, {"wan-host": "1"})
        for changed in (
            request(prompt="another"),
            request(seed=8),
            request(references=References(image=pixel)),
            request(references=References(first_frame=np.zeros((8, 8, 3), np.uint8))),
            request(loras=(Lora(name="a", scale=0.5),)),
            request(reference_mode=ReferenceMode.SINGLE),
            request(job_id="job-2"),
        )
    ]
    others += [
        identify(request(), replace(MODEL, path="/models/other"), {"wan-host": "1"}),
        identify(request(), replace(MODEL, options={"adapters": [("a", 0.5)]}), {"wan-host": "1"}),
        identify(request(), MODEL, {"wan-host": "2"}),
    ]
    assert len({tuple(sorted(found.items())) for found in (same, *others)}) == 11
