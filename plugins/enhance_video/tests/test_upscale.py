"""Twice the size: closer to the truth than bicubic, still the same picture, and nothing beside edges that was not there."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from wan_host_enhance_video import threads
from wan_host_enhance_video.enlarging import enlarge, enlarge_all

from wan_host import JobCancelled
from wan_host.testing.media import psnr


def scene(height=128, width=192):
    """A star and a disc on a soft ground, without jagged edges."""
    large = np.full((4 * height, 4 * width, 3), (60, 90, 120), np.uint8)
    cv2.circle(large, (260, 250), 130, (240, 200, 40), -1)
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 60, 150)
    points = np.stack([530 + radii * np.sin(angles), 260 - radii * np.cos(angles)], axis=1).round().astype(np.int32)
    cv2.fillPoly(large, [points], (200, 30, 60))
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def halved(picture):
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def test_it_is_closer_to_the_true_picture_than_bicubic():
    true = scene()
    bicubic = cv2.resize(halved(true), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert psnr(enlarge(halved(true)), true) > psnr(bicubic, true) + 2


def test_halved_again_it_is_the_given_picture_as_far_as_bytes_go():
    small = halved(scene())
    bicubic = cv2.resize(small, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    assert psnr(halved(enlarge(small)), small) > psnr(halved(bicubic), small) + 6


def test_no_pixel_leaves_what_is_found_around_it():
    small = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    around = np.ones((3, 3), np.uint8)
    low, high = (np.kron(found(small, around), np.ones((2, 2, 1), np.uint8)) for found in (cv2.erode, cv2.dilate))
    large = enlarge(small)
    assert (large >= low).all()
    assert (large <= high).all()


def test_a_flat_picture_stays_flat():
    assert np.array_equal(enlarge(np.full((16, 18, 3), 77, np.uint8)), np.full((32, 36, 3), 77, np.uint8))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 33), (1, 1)])
def test_every_size_is_doubled(height, width, context):
    clip = np.random.default_rng(2).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    made = enlarge_all(clip, context)
    assert made.shape == (3, 2 * height, 2 * width, 3)
    assert np.array_equal(made[1], enlarge(clip[1]))


def test_a_cancel_ends_it_before_the_next_frames_begin(monkeypatch, context):
    monkeypatch.setattr(threads, "_cores", lambda: 1)
    context.cancel_at = 2
    with pytest.raises(JobCancelled):
        enlarge_all(np.zeros((50, 64, 64, 3), np.uint8), context)
    assert context.beats == 2


def test_the_plugins_are_light_until_a_clip_comes():
    modules = "wan_host_enhance_video.interpolate, wan_host_enhance_video.upscale"
    code = f"import sys, {modules}; print({{'cv2', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
