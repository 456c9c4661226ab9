"""Pinned frames equal their references, and the step beside them is like the clip's other steps."""

from __future__ import annotations

import numpy as np
import pytest
from wan_host_wan21.generation import generate
from wan_host_wan21.pinning import _apply, _Fade, pin, step_ratio
from wan_host_wan21.settings import Wan21Settings

from wan_host import ReferenceMode, References

HEIGHT, WIDTH = 64, 48


def scene(shift: float, seed: int = 0) -> np.ndarray:
    """Return waves at a phase: uint8 (HEIGHT, WIDTH, 3)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    return np.stack([128 + 90 * np.sin((x + shift) / (5 + c + seed)) * np.cos(y / 9 + c) for c in range(3)], axis=-1).astype(
        np.uint8
    )


def moving(frames: int = 33, speed: float = 0.6) -> np.ndarray:
    return np.stack([scene(speed * index) for index in range(frames)])


def off_by(reference: np.ndarray, amount: float, seed: int = 5) -> np.ndarray:
    """Return the reference with a smooth error of about ``amount`` levels."""
    error = (scene(0, seed).astype(np.float32) - 128) * amount / 50
    return np.clip(reference + error, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amount", [3, 10, 30, 80])
@pytest.mark.parametrize("ends", ["first", "last", "both"])
def test_pinned_ends_are_exact_and_join_smoothly(amount, ends, recorder):
    clip = moving()
    first = off_by(clip[0], amount) if ends != "last" else None
    last = off_by(clip[-1], amount, seed=7) if ends != "first" else None
    made, done = pin(clip, first, last)
    pinned = [0] * (first is not None) + [len(clip) - 1] * (last is not None)
    assert first is None or np.array_equal(made[0], first)
    assert last is None or np.array_equal(made[-1], last)
    assert step_ratio(made, pinned) <= 1.5
    assert done.step_ratio <= 1.5
    assert done.error_db < 50


def test_only_the_neighbours_change_where_the_error_is_small():
    clip = moving()
    made, done = pin(clip, off_by(clip[0], 3), None)
    assert done.fade_frames < 16
    assert np.array_equal(made[done.fade_frames :], clip[done.fade_frames :])


def test_a_clip_that_stands_still_is_corrected_over_its_whole_length():
    clip = np.repeat(scene(0)[None], 21, axis=0)
    made, done = pin(clip, off_by(clip[0], 40), None)
    assert done.fade_frames > 10
    assert step_ratio(made, [0]) <= 1.5


def test_a_first_step_that_jumps_by_itself_is_eased():
    clip = moving()
    clip[0] = scene(40, seed=3)
    made, _ = pin(clip, off_by(clip[0], 5), None)
    assert step_ratio(made, [0]) <= 1.5


def test_half_the_weight_goes_half_the_way():
    clip = moving(9)
    target = off_by(clip[0], 30)
    made, _ = pin(clip, target, None, weight=0.5)
    middle = (clip[0].astype(np.float32) + target) / 2
    assert np.abs(made[0] - middle).max() <= 1


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_short_clips_can_be_pinned(frames):
    clip = moving(frames)
    first, last = off_by(clip[0], 20), off_by(clip[-1], 20)
    made, _ = pin(clip, first, last)
    assert np.array_equal(made[0], first)
    assert frames == 1 or np.array_equal(made[-1], last)


def test_the_worse_end_and_the_worse_measure_count():
    """A jump of a small patch shows in the RMS of a step and hardly in its mean."""
    clip = np.repeat(scene(0)[None].astype(np.int16), 9, axis=0) + (np.arange(9) % 2)[:, None, None, None]
    clip[-1, :4, :4] += 60
    clip = np.clip(clip, 0, 255).astype(np.uint8)
    assert step_ratio(clip, [0]) < 1.2
    assert step_ratio(clip, [0, 8]) == step_ratio(clip, [8]) > 3
    mean = np.abs(np.diff(clip.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert mean[-1] / np.median(mean) < 1.5


def test_the_source_is_not_changed():
    clip = moving(9)
    before = clip.copy()
    pin(clip, off_by(clip[0], 20), None)
    assert np.array_equal(clip, before)


@pytest.mark.parametrize("mode", ["start", "end", "both", "single"])
def test_a_job_is_pinned_and_says_so(mode, vace, video, picture, recorder):
    references = References(image=picture(1), first_frame=picture(1), last_frame=picture(2))
    made = generate(video(frames=7, reference_mode=ReferenceMode(mode), references=references), vace, recorder())
    frames = made.clips[0].frames
    assert np.array_equal(frames[0], picture(1)) == (mode != "end")
    assert np.array_equal(frames[-1], picture(2)) == (mode in {"end", "both"})
    assert made.metadata["pinned"] is True
    assert made.metadata["pin_psnr_before"] < 35


def test_pinning_can_be_switched_off(vace, video, picture, recorder, monkeypatch):
    monkeypatch.setattr(vace, "settings", Wan21Settings(pin_frames=False))
    wanted = video(reference_mode=ReferenceMode.START, references=References(first_frame=picture(1)))
    made = generate(wanted, vace, recorder())
    assert made.metadata["pinned"] is False
    assert "pin_fade_frames" not in made.metadata
    assert not np.array_equal(made.clips[0].frames[0], picture(1))


def test_an_eased_fade_takes_the_end_no_farther_than_its_weight():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    made = _apply(frames, {0: np.full((8, 8, 3), 200, np.uint8)}, _Fade(length=1, ease=1.0), 0.5)
    assert (made[0] == 100).all()
    assert (made[1] == 100).all()
