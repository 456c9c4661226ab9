"""The whole way with a real model: tiny-wan through wan21 on diffusers, in a worker as users run it."""

import base64
import io
import json
import os
import signal
import time

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw

from tests.end_to_end.conftest import Site, payload
from wan_host.probe import probe
from wan_host.testing.media import psnr, read_frames

PROMPT = "a red circle moves to the right on a black background"


@pytest.fixture(scope="module")
def wan_site(tmp_path_factory, plugins):
    with Site(tmp_path_factory.mktemp("wan"), plugins) as there:
        there.environment |= {"WAN_HOST_MODEL": "tiny-wan", "WAN_HOST_DISABLED_PLUGINS": "", "WAN_HOST_LEASE_SECONDS": "15"}
        there.start()
        yield there


def run(site, job_id, prompt=PROMPT, **config):
    """Push a job, wait for its end; return the report and the published file."""
    site.push(payload(job_id, prompt=prompt, seed=11, **config))
    report = site.receiver.wait_for(job_id, "completed", seconds=100)
    return report, site.data / "outputs" / report["assets"][0]["url"]


def reference():
    picture = Image.new("RGB", (160, 120), (128, 128, 128))
    ImageDraw.Draw(picture).ellipse((40, 40, 80, 80), fill=(220, 40, 40))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return picture, f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def test_a_prompt_becomes_the_video_that_it_describes(wan_site):
    report, file = run(wan_site, "red-circle")
    measured = probe(file)
    assert (measured.width, measured.height, measured.frames, measured.fps) == (128, 128, 9, 8)
    assert report["metadata"]["model"] == "tiny-wan"
    frames = read_frames(file).astype(int)
    red = (frames[..., 0] > frames[..., 2] + 40) & (frames[..., 0] > frames[..., 1] + 40)
    assert 0.005 < red.mean() < 0.4, "a red object, not a red picture"
    assert (frames.max(-1) < 60).mean() > 0.5, "a black background"
    columns = np.arange(128)
    first, last = ((red[index] * columns).sum() / max(red[index].sum(), 1) for index in (1, -1))
    assert last > first + 4, "it moves to the right"


def test_the_same_seed_makes_the_same_file_whatever_ran_before(wan_site):
    _, first = run(wan_site, "same-1")
    run(wan_site, "other", prompt="a green square", frames=5)
    _, second = run(wan_site, "same-2")
    assert first.read_bytes() == second.read_bytes()


def test_a_start_reference_is_the_first_published_frame(wan_site):
    picture, uri = reference()
    report, file = run(wan_site, "start", first_frame=uri)
    assert report["metadata"]["reference_mode"] == "start"
    fitted = np.asarray(picture.crop((20, 0, 140, 120)).resize((128, 128), Image.Resampling.LANCZOS))
    assert psnr(read_frames(file)[0], fitted) >= 35


def test_fine_detail_of_references_survives_the_encoder(wan_site):
    """Grain, in grey: what 4:2:0 takes from colours is no matter here, and coded like other frames these have 38 to 40 dB."""
    grain = np.random.default_rng(1).integers(40, 216, (2, 128, 128, 1)).astype(np.uint8).repeat(3, axis=-1)
    uris = []
    for picture in grain:
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "PNG")
        uris.append(f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}")
    _, file = run(wan_site, "grain", num_inference_steps=4, first_frame=uris[0], last_frame=uris[1], frames=5)
    frames = read_frames(file)
    assert psnr(frames[0], grain[0]) >= 43
    assert psnr(frames[-1], grain[1]) >= 43


def test_interpolation_has_five_frames_made_of_nine_and_keeps_both_references_exact(wan_site):
    picture, uri = reference()
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    encoded = io.BytesIO()
    mirrored.save(encoded, "PNG")
    last = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    report, file = run(wan_site, "smooth", first_frame=uri, last_frame=last, postprocess=["interpolate"])
    assert (report["metadata"]["generated_frames"], report["metadata"]["frame_num"]) == (5, 9)
    frames = read_frames(file)
    assert len(frames) == 9
    for frame, given in ((frames[0], picture), (frames[-1], mirrored)):
        assert psnr(frame, np.asarray(given.crop((20, 0, 140, 120)).resize((128, 128), Image.Resampling.LANCZOS))) >= 35


def test_an_image_job_takes_a_reference_and_a_strength(wan_site):
    picture, uri = reference()
    job = json.loads(payload("image", prompt="a red circle on a gray background", seed=1, image=uri, denoise_strength=0.3))
    job["type"] = "image_fast"
    del job["config"]["frames"]
    wan_site.push(json.dumps(job))
    report = wan_site.receiver.wait_for("image", "completed", seconds=100)
    assert report["assets"][0]["metadata"]["pipeline"] == "img2img"
    assert report["metadata"]["denoise_strength"] == 0.3
    made = np.asarray(Image.open(wan_site.data / "outputs" / report["assets"][0]["url"]).convert("RGB"))
    fitted = np.asarray(picture.crop((20, 0, 140, 120)).resize((128, 128), Image.Resampling.LANCZOS))
    assert psnr(made, fitted) > 15


def test_the_lane_killed_in_the_middle_costs_an_attempt_and_changes_nothing(wan_site):
    _, undisturbed = run(wan_site, "calm", num_inference_steps=10)
    wan_site.push(payload("killed", prompt=PROMPT, seed=11, num_inference_steps=10))
    deadline = time.monotonic() + 60
    while True:
        (lane,) = wan_site.workers[0].get("/health")[1]["lanes"]
        if lane["job_id"] == "killed" and lane["stage"] == "denoise" and lane["step"] >= 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (pid,) = wan_site.workers[0].lane_pids()
    os.kill(pid, signal.SIGKILL)
    report = wan_site.receiver.wait_for("killed", "completed", seconds=100)
    assert report["metadata"]["attempt"] == 2
    assert (wan_site.data / "outputs" / report["assets"][0]["url"]).read_bytes() == undisturbed.read_bytes()


def test_the_host_process_stays_small_and_free_of_torch(wan_site):
    host = psutil.Process(wan_site.workers[0].pid)
    assert host.memory_info().rss < 150 * 2**20
    assert not [region.path for region in host.memory_maps() if "torch" in region.path]
    assert wan_site.workers[0].get("/health")[1]["wan_model_loaded"] is True
