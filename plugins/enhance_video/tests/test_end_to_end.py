"""A worker in its own process: what the model is asked for, what is published and reported, and what is refused."""

import json
import os

import numpy as np
import pytest
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing import instant
from wan_host.testing.media import psnr, read_frames
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver


@pytest.fixture(scope="module")
def do(tmp_path_factory):
    """Give the worker a job and return its last report and the frames of its files."""
    folder = tmp_path_factory.mktemp("site")
    instant.install(folder / "plugins")
    data = folder / "data"
    with Receiver() as receiver:
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "plugins"), os.environ.get("PYTHONPATH", "")])),
            "WAN_HOST_MODEL": "instant",
            "WAN_HOST_DISABLED_PLUGINS": "wan21,tiny_wan,qwen_enhance,supabase",
            "WAN_HOST_CALLBACK_URL": receiver.url,
            "WAN_HOST_DEVICES": "cpu",
        }

        def done(job_id, status="completed", job_type="video_fast", **config):
            size = {"width": 128, "height": 64, "seed": 3}
            job = {"id": job_id, "type": job_type, "prompt": "a red circle", "user_id": "u", "config": size | config}
            with Redis.from_url(EmbeddedServer(data).url) as client:
                client.rpush("wan_queue", json.dumps(job))
            report = receiver.wait_for(job_id, status)
            frames = [read_frames(data / "outputs" / asset["url"]) for asset in report["assets"]]
            return report, frames

        with WorkerProcess(data_dir=data, environment=environment):
            yield done


def test_interpolation_has_fewer_frames_made_and_delivers_what_was_asked_for(do):
    report, (frames,) = do("smooth", postprocess=["interpolate"], frames=9, fps=12)
    measured = report["assets"][0]["metadata"]
    assert (measured["frames"], measured["fps"], measured["duration"]) == (9, 12.0, 0.75)
    assert (report["metadata"]["frame_num"], report["metadata"]["postprocess"]) == (9, ["interpolate"])
    made = instant.draw(128, 64, 5, seed=3).frames
    for index in range(5):
        assert psnr(frames[2 * index], made[index]) > 34
    nine = instant.draw(128, 64, 9, seed=3).frames
    assert psnr(frames[-1], made[-1]) > psnr(frames[-1], nine[-1]) + 6
    assert 0 < report["metadata"]["stage_seconds"]["process_frames"] < 30


def test_the_report_has_the_measured_size_of_an_upscaled_file(do):
    report, (frames,) = do("large", postprocess=["upscale"], frames=5, fps=8)
    measured = report["assets"][0]["metadata"]
    assert (measured["width"], measured["height"], measured["frames"]) == (256, 128, 5)
    assert frames.shape == (5, 128, 256, 3)


@pytest.mark.parametrize("order", [["interpolate", "upscale"], ["upscale", "interpolate"]])
def test_both_run_in_either_order(do, order):
    report, (frames,) = do(f"both-{order[0]}", postprocess=order, frames=8, fps=8)
    assert frames.shape == (8, 128, 256, 3)
    assert report["metadata"]["postprocess"] == order


def test_images_are_upscaled_each(do):
    report, pictures = do("pictures", job_type="image_fast", postprocess=["upscale"], num_images=2)
    assert [picture.shape for picture in pictures] == [(1, 128, 256, 3)] * 2
    assert [asset["metadata"]["seed"] for asset in report["assets"]] == [3, 4]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize(
    ("job_type", "config", "message"),
    [
        (
            "image_fast",
            {"postprocess": ["interpolate"]},
            "config.postprocess.0: 'interpolate' is not allowed; it serves video jobs, and image_fast makes an image",
        ),
        (
            "video_fast",
            {"postprocess": ["interpolate"], "frames": 2},
            "config.frames: 2 is not allowed; interpolate needs at least 3: it is given the first, the last, and fewer between",
        ),
        (
            "video_fast",
            {"postprocess": ["upscael"]},
            (
                "config.postprocess.0: 'upscael' is not allowed; "
                "the installed frame processors are interpolate, upscale (did you mean 'upscale'?)"
            ),
        ),
        (
            "video_fast",
            {"postprocess": ["upscale", "upscale"]},
            "config.postprocess.1: 'upscale' is not allowed; it is in the list already; each processor runs once",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(do, job_type, config, message):
    report, _ = do(f"refused-{abs(hash(message))}", status="failed", job_type=job_type, **config)
    assert (report["metadata"]["error_type"], report["error_message"]) == ("invalid_job", message)
