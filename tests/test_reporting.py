"""Reports: every field of the wire contract, in strict JSON, whatever a plugin or a stranger said."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.sample_jobs import WAN, resolve
from wan_host import FrameProcessor, GenerationFailed, InvalidJob, Media, ModelInfo, Report, WanHostError
from wan_host.frame_processors import plan
from wan_host.reporting import Outcome, completed_report, failed_report, processing_report, with_urls
from wan_host.run import Run

ALWAYS = {
    "enhancement_source": str,
    "reference_mode": str,
    "processing_time": float,
    "vram_used": int,
    "auto_enhancement": bool,
    "attempt": int,
    "queue_time": float,
}
RESOLVED = ALWAYS | {
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "frame_num": int,
    "model": str,
    "reference_mode_source": str,
}
ASSET = {
    "width": int,
    "height": int,
    "frames": int,
    "fps": float,
    "duration": float,
    "format": str,
    "file_size_bytes": int,
    "asset_index": int,
    "seed": int,
    "pipeline": str,
    "resize_policy": str,
    "negative_prompt_used": bool,
}


def run(job=None, **values):
    base = {
        "job_id": "job-1",
        "user_id": "user-1",
        "token": 1,
        "attempt": 2,
        "deadline": 1e18,
        "workdir": Path(),
        "queue_time": 1.23456,
    }
    return Run(job=job, **base | values)


def media(index=0, **values):
    base = {
        "asset_index": index,
        "kind": "video",
        "path": Path("0.mp4"),
        "width": 480,
        "height": 832,
        "frames": 83,
        "fps": 24.0,
        "duration": 83 / 24,
        "format": "mp4",
        "file_size_bytes": 5242880,
        "seed": 4242 + index,
    }
    return Media(**base | values)


def completed(job=None, outcome=None, media_list=None, **values):
    return completed_report(run(job or resolve(), **values), "worker-1", media_list or [media()], outcome or Outcome())


def checked(report):
    """The report after its way through strict JSON."""
    text = Report(job_id="j", attempt=1, status=report["status"], sequence=1, payload=report).body()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a report"))


def has(found, expected):
    for name, kind in expected.items():
        assert type(found[name]) is kind, name


# All reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        processing_report(run(resolve()), "worker-1"),
        completed(),
        failed_report(run(resolve()), "worker-1", GenerationFailed("no")),
    ],
)
def test_every_report_of_a_resolved_job_has_the_fields_of_the_contract(report):
    report = checked(report)
    assert (report["job_id"], report["worker_id"]) == ("job-1", "worker-1")
    assert report["status"] in {"processing", "completed", "failed"}
    assert isinstance(report["assets"], list)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", report["timestamp"])
    has(report["metadata"], RESOLVED)
    assert report["metadata"]["attempt"] == 2
    assert report["metadata"]["queue_time"] == 1.235


def test_a_job_that_could_not_be_read_is_reported_with_what_is_known():
    report = checked(failed_report(run(), "worker-1", InvalidJob("config.fps", 60, "8 to 24")))
    has(report["metadata"], ALWAYS)
    assert report["metadata"]["error_type"] == "invalid_job"
    assert report["error_message"] == "config.fps: 60 is not allowed; 8 to 24"
    assert (report["status"], report["assets"]) == ("failed", [])
    assert report["metadata"]["reference_mode"] == "none"


def test_the_time_of_processing_is_that_of_the_run():
    report = processing_report(run(started=time.monotonic() - 12.5), "w")
    assert report["metadata"]["processing_time"] == pytest.approx(12.5, abs=1)


# Completed ------------------------------------------------------------------------------------------------------------


def test_an_asset_has_the_fields_of_the_seed_as_they_were_measured():
    (asset,) = checked(completed())["assets"]
    assert asset["type"] == "video"
    has(asset["metadata"], ASSET)
    found = asset["metadata"]
    assert (found["width"], found["height"], found["frames"], found["fps"]) == (480, 832, 83, 24)
    assert (found["duration"], found["file_size_bytes"], found["format"]) == (3.458, 5242880, "mp4")
    assert (found["resize_policy"], found["negative_prompt_used"]) == ("center_crop", False)


def test_several_images_are_several_assets_with_seeds_of_their_own():
    job = resolve({"num_images": 3, "seed": 7}, type="image_fast")
    images = [media(i, kind="image", format="png", frames=1, seed=7 + i) for i in range(3)]
    report = checked(completed(job, media_list=images))
    assert [asset["metadata"]["asset_index"] for asset in report["assets"]] == [0, 1, 2]
    assert [asset["metadata"]["seed"] for asset in report["assets"]] == [7, 8, 9]
    assert report["metadata"]["frame_num"] == 1


def test_a_job_with_frame_processors_reports_them_and_the_frames_of_the_file():
    request = plan(resolve().request, [("smooth", FrameProcessor(rate=2)), ("large", FrameProcessor(scale=2))])
    metadata = processing_report(run(replace(resolve(), request=request)), "w")["metadata"]
    assert (metadata["frame_num"], metadata["postprocess"]) == (83, ["smooth", "large"])
    assert "postprocess" not in processing_report(run(resolve()), "w")["metadata"]


def test_frame_num_is_what_was_measured_not_what_was_asked():
    assert completed(media_list=[media(frames=81)])["metadata"]["frame_num"] == 81


@pytest.mark.parametrize(
    ("config", "job_type", "pipeline"),
    [
        ({}, "video_fast", "txt2vid"),
        ({}, "image_fast", "txt2img"),
        ({"image": "a"}, "image_fast", "img2img"),
        ({"image": "a"}, "video_fast", "img2img"),
        ({"first_frame": "a"}, "video_fast", "img2img"),
        ({"reference_images": ["a"]}, "video_fast", "img2img"),
    ],
)
def test_the_pipeline_is_named_by_what_took_part(config, job_type, pipeline):
    assert completed(resolve(config, type=job_type))["assets"][0]["metadata"]["pipeline"] == pipeline


def test_a_negative_prompt_is_told_as_used():
    assert completed(resolve(negative_prompt="dark"))["assets"][0]["metadata"]["negative_prompt_used"] is True


def test_a_negative_prompt_that_the_model_had_no_use_for_is_not_told_as_used():
    report = completed(resolve(negative_prompt="dark"), Outcome(generated={"negative_prompt_applied": False}))
    assert report["assets"][0]["metadata"]["negative_prompt_used"] is False
    assert report["metadata"]["negative_prompt_applied"] is False


@pytest.mark.parametrize(
    ("config", "applied"),
    [({"image": "a"}, True), ({"first_frame": "a"}, False), ({"first_frame": "a", "last_frame": "b"}, False)],
)
def test_the_denoising_strength_is_reported_with_whether_it_acted(config, applied):
    report = completed(resolve(config, {"denoise_strength": 0.15}))
    assert report["metadata"]["denoise_strength"] == 0.15
    assert report["metadata"]["denoise_applied"] is applied
    assert report["assets"][0]["metadata"]["denoise_strength"] == 0.15


def test_without_a_reference_no_strength_is_reported():
    report = completed()
    assert "denoise_strength" not in report["metadata"]
    assert "denoise_strength" not in report["assets"][0]["metadata"]


def test_an_enhanced_prompt_is_reported_with_its_source():
    outcome = Outcome(enhancement_source="qwen_base", enhanced_prompt="a bright red circle", vram_mib=30720)
    found = completed(resolve(type="video7b_fast_enhanced"), outcome)["metadata"]
    assert (found["enhancement_source"], found["auto_enhancement"], found["vram_used"]) == ("qwen_base", True, 30720)
    assert found["enhanced_prompt"] == "a bright red circle"
    assert "enhancement_note" not in found


def test_why_a_prompt_was_not_enhanced_is_reported():
    found = completed(resolve(type="video7b_fast_enhanced"), Outcome(enhancement_note="timeout"))["metadata"]
    assert (found["enhancement_source"], found["enhancement_note"]) == ("none", "timeout")
    assert "enhanced_prompt" not in found


def test_random_weights_are_never_hidden():
    models = {WAN.name: ModelInfo(**{f: getattr(WAN, f) for f in WAN.__slots__} | {"random_weights": True})}
    assert completed(resolve(models=models))["metadata"]["random_weights"] is True
    assert "random_weights" not in completed()["metadata"]


def test_seconds_of_the_stages_are_reported():
    one = run(resolve())
    one.seconds = {"denoise": 1.23456, "encode": math.inf}
    assert completed_report(one, "w", [media()], Outcome())["metadata"]["stage_seconds"] == {"denoise": 1.235, "encode": 0.0}


def test_remarks_of_a_plugin_are_added_where_json_can_hold_them_and_never_replace_ours():
    remarks = {
        "attention": "sdpa",
        "tiles": 4,
        "cached": True,
        "loss": math.nan,
        "gain": math.inf,
        "array": np.zeros(3),
        "half": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "bad": np.float64("nan"),
        "nested": {"a": 1},
        "none": None,
        "long": "x" * 100_000,
        "broken": "\ud800",
        "seed": "fake",
        "attempt": 99,
        "error_type": "x",
    }
    found = checked(completed(outcome=Outcome(generated=remarks)))["metadata"]
    assert {name: found[name] for name in ("attention", "tiles", "cached", "half", "count", "flag")} == {
        "attention": "sdpa",
        "tiles": 4,
        "cached": True,
        "half": 0.5,
        "count": 3,
        "flag": True,
    }
    assert not {"loss", "gain", "array", "bad", "nested", "none"} & set(found)
    assert (found["seed"], found["attempt"]) == (4242, 2)
    assert len(found["long"]) <= 2000
    assert found["broken"] == "?"


def test_a_completed_report_of_a_job_that_was_never_resolved_is_a_bug():
    with pytest.raises(ValueError, match="no resolved job"):
        completed_report(run(), "w", [media()], Outcome())


# Failed ---------------------------------------------------------------------------------------------------------------


def test_a_failure_says_what_and_of_which_type():
    report = failed_report(run(resolve()), "w", GenerationFailed("plugin wan21 raised ValueError: x"))
    assert report["error_message"] == "plugin wan21 raised ValueError: x"
    assert report["metadata"]["error_type"] == "generation_failed"


def test_a_message_of_megabytes_or_of_broken_characters_can_still_be_sent():
    report = checked(failed_report(run(), "w", WanHostError("x" * 10_000_000)))
    assert len(report["error_message"]) <= 2000
    assert checked(failed_report(run(), "w", WanHostError("file \udcff.mp4")))["error_message"] == "file ?.mp4"


# Urls -----------------------------------------------------------------------------------------------------------------


def test_urls_are_put_where_the_seed_has_them():
    report = completed(media_list=[media(0), media(1)])
    placed = with_urls(
        report,
        {
            (0, "asset"): "b/u/j/0.mp4",
            (0, "thumbnail"): "b/u/j/0.thumb.webp",
            (1, "asset"): "b/u/j/1.mp4",
            (1, "sheet"): "b/u/j/1.sheet.webp",
        },
    )
    assert [asset["url"] for asset in placed["assets"]] == ["b/u/j/0.mp4", "b/u/j/1.mp4"]
    assert placed["assets"][0]["thumbnail_url"] == "b/u/j/0.thumb.webp"
    assert placed["assets"][1]["derived"] == {"sheet": "b/u/j/1.sheet.webp"}
    assert "thumbnail_url" not in placed["assets"][1]
    assert "derived" not in placed["assets"][0]
    assert placed["assets"][0]["metadata"] == report["assets"][0]["metadata"]
    assert "url" not in report["assets"][0]


def test_a_report_without_urls_survives_the_spool():
    report = completed()
    again = json.loads(json.dumps(report, allow_nan=False))
    assert with_urls(again, {(0, "asset"): "x"})["assets"][0]["url"] == "x"


# The envelope ---------------------------------------------------------------------------------------------------------


def test_the_body_is_compact_utf8_and_refuses_what_is_no_json():
    def body(payload):
        return Report(job_id="j", attempt=3, status="failed", sequence=1, payload=payload).body()

    assert body({"a": "é", "b": [1, 2]}) == b'{"a":"\xc3\xa9","b":[1,2]}'
    assert body({"a": "\ud800"}) == b'{"a":"?"}'
    with pytest.raises(ValueError, match="JSON compliant"):
        body({"a": math.nan})


def test_the_key_names_job_attempt_and_status():
    assert Report(job_id="j", attempt=3, status="failed", sequence=1, payload={}).idempotency_key == "j:3:failed"
