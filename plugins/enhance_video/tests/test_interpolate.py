"""Frames between others: in the right place, at the right time, and the given ones untouched."""

import cv2
import numpy as np
import pytest
from wan_host_enhance_video import motion, threads
from wan_host_enhance_video.motion import in_between, retime

from wan_host import JobCancelled
from wan_host.testing.media import psnr


def ground(height=96, width=128, seed=0):
    """A picture with detail at several sizes."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)


def disc(x, y, on):
    """A textured disc of radius 18 at (x, y), with a smooth edge, on a picture."""
    rows, columns = np.mgrid[0 : on.shape[0], 0 : on.shape[1]]
    cover = np.clip(18.5 - np.hypot(columns - x, rows - y), 0, 1)[..., None]
    pattern = np.float32([[1, 0, x - 64], [0, 1, y - 48]])
    texture = cv2.warpAffine(ground(seed=5), pattern, on.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    return (on * (1 - cover) + texture * cover).round().astype(np.uint8)


def mixed(first, second, t=0.5):
    return cv2.addWeighted(first, 1 - t, second, t, 0)


def moving(frames, on, step=5):
    return np.stack([disc(40 + step * index, 40 + step * index / 2, on) for index in range(frames)])


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_an_object_is_where_it_must_be_at_that_time(t):
    on = ground()
    first, second, true = disc(40, 40, on), disc(52, 46, on), disc(40 + 12 * t, 40 + 6 * t, on)
    (made,) = in_between(first, second, [t])
    assert psnr(made, true) > psnr(mixed(first, second, t), true) + 5


def test_an_object_as_bright_as_the_ground_is_seen_by_its_colour():
    clip = np.full((3, 96, 128, 3), (60, 130, 60), np.uint8)
    equally_bright = (226, 50, 40)
    rows, columns = np.mgrid[0:96, 0:128]
    for index, frame in enumerate(clip):
        cover = np.clip(18.5 - np.hypot(columns - 40 - 4 * index, rows - 48), 0, 1)[..., None]
        clip[index] = (frame * (1 - cover) + np.array(equally_bright) * cover).round()
        assert np.ptp(cv2.cvtColor(clip[index], cv2.COLOR_RGB2GRAY)) <= 1
    (made,) = in_between(clip[0], clip[2], [0.5])
    assert psnr(made, clip[1]) > psnr(mixed(clip[0], clip[2]), clip[1]) + 6


def test_a_still_ground_with_stripes_stays_as_it_is_beside_a_moving_object():
    """Optical flow alone moves the stripes, by whole periods: that is what pictures are compared for."""
    row = np.where(np.arange(256) // 4 % 2, 120, 70).astype(np.uint8)
    clip = moving(3, np.broadcast_to(row[None, :, None], (192, 256, 3)), step=9)
    (made,) = in_between(clip[0], clip[2], [0.5])
    assert psnr(made, clip[1]) > psnr(mixed(clip[0], clip[2]), clip[1]) + 10
    assert np.array_equal(made[:, 100:], clip[1][:, 100:])


def test_where_flow_says_nothing_frames_are_mixed():
    first, second = np.full((64, 64, 3), 40, np.uint8), np.full((64, 64, 3), 200, np.uint8)
    (made,) = in_between(first, second, [0.25])
    assert np.array_equal(made, np.full((64, 64, 3), 80, np.uint8))


@pytest.mark.parametrize(("given", "count"), [(5, 9), (2, 3), (42, 83), (5, 8), (3, 3), (1, 1)])
def test_the_number_is_exact_and_the_first_and_the_last_frame_stay_bit_for_bit(given, count, context):
    clip = moving(given, ground(48, 64), step=1)
    made = retime(clip, count, context)
    assert made.shape == (count, 48, 64, 3)
    assert np.array_equal(made[0], clip[0])
    assert np.array_equal(made[-1], clip[-1])
    if count == 2 * given - 1:
        assert np.array_equal(made[::2], clip)


def test_frames_are_spread_evenly_where_they_do_not_fall_on_given_ones(monkeypatch, context):
    asked = []
    monkeypatch.setattr(motion, "in_between", lambda first, second, times: asked.append(times) or [first] * len(times))
    retime(np.zeros((5, 32, 32, 3), np.uint8), 8, context)
    times = sorted(round(7 * (before + t)) for before, part in enumerate(asked) for t in part)
    assert times == sorted(round(7 * (4 * index / 7 % 1 + 4 * index // 7)) for index in range(1, 7))


@pytest.mark.parametrize("side", [16, 20, 33])
def test_small_pictures_can_be_interpolated(side, context):
    clip = np.stack([ground(side, 2 * side, seed=seed) for seed in (1, 2)])
    assert retime(clip, 3, context).shape == (3, side, 2 * side, 3)


def test_the_same_frames_come_out_whatever_the_number_of_cores(monkeypatch, context):
    """Dense inverse search gives other results with another number of threads of OpenCV's."""
    clip = moving(4, ground())
    made = []
    try:
        for cores in (1, 3):
            cv2.setNumThreads(cores)
            monkeypatch.setattr(threads, "_cores", lambda cores=cores: cores)
            made.append(retime(clip, 7, context))
            assert cv2.getNumThreads() == cores, "other users of OpenCV get their threads back"
    finally:
        cv2.setNumThreads(-1)
    assert np.array_equal(*made)


def test_a_cancel_ends_it_before_the_next_pieces_begin(monkeypatch, context):
    monkeypatch.setattr(threads, "_cores", lambda: 1)
    begun = []
    real = motion.in_between
    monkeypatch.setattr(motion, "in_between", lambda *given: begun.append(1) or real(*given))
    context.cancel_at = 2
    with pytest.raises(JobCancelled):
        retime(moving(20, ground()), 39, context)
    assert len(begun) < 6


def test_an_error_in_a_piece_is_raised(monkeypatch, context):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(motion, "in_between", fail)
    with pytest.raises(MemoryError, match="no room"):
        retime(moving(3, ground()), 5, context)
