"""The judge finds what a clip shows, and does not find what it does not show."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks/tiny_wan_quality.py"
spec = importlib.util.spec_from_file_location("tiny_wan_quality", SCRIPT)
quality = importlib.util.module_from_spec(spec)
sys.modules["tiny_wan_quality"] = quality
spec.loader.exec_module(quality)


def clip_of(case, frames=5):
    return np.stack([np.asarray(quality.paint(case, t / (frames - 1))) for t in range(frames)])


def test_right_captions_are_right_and_others_wrong():
    asked = quality.cases(8)
    for case, other in zip(asked, asked[3:] + asked[:3], strict=True):
        frames = clip_of(case, 9 if case.motion == "rotate" else 4)
        verdict = quality.judge(case, frames)
        assert verdict["both"] and verdict["motion"], verdict  # noqa: PT018 - one verdict
        wrong = quality.judge(other, frames)
        assert not (wrong["both"] and wrong["motion"])


def test_an_empty_or_crowded_frame_shows_no_object():
    assert quality.look(np.full((64, 64, 3), 90, np.uint8)) is None
    crowded = np.full((64, 64, 3), 90, np.uint8)
    crowded[5:20, 5:20] = crowded[40:55, 40:55] = (220, 30, 30)
    assert quality.look(crowded) is None


def test_an_image_is_judged_by_its_one_frame(tmp_path):
    case = quality.cases(1)[0]

    def generate(payload):
        assert payload["num_frames"] == 1
        quality.paint(case, 0.5).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    shares, rows = quality.measure_captions(generate, [case], "images", frames=1)
    assert shares == {"colour and shape": 1.0, "colour": 1.0, "shape": 1.0, "background": 1.0}
    assert rows[0]["seen"] == [f"{case.colour} {case.shape}"] * 3


def test_presets_are_compared_caption_by_caption():
    def rows(*verdicts):
        return [dict.fromkeys(("both", "colour", "shape", "motion"), verdict) for verdict in verdicts]

    found = quality.paired(rows(True, True, False, False, False, False), rows(True, False, True, True, True, True))
    assert found["both"] == {"lost": 4, "gained": 1, "p": pytest.approx(0.375)}
    assert quality.paired(rows(True), rows(True))["both"] == {"lost": 0, "gained": 0, "p": 1.0}
    assert set(found) == {"both", "colour", "shape", "motion"}


def test_images_are_not_compared_by_motion():
    row = {"both": True, "colour": True, "shape": True, "motion": False}
    assert set(quality.paired([row], [row], frames=1)) == {"both", "colour", "shape"}


def test_a_report_of_other_captions_is_refused(tmp_path):
    asked = {"captions": quality.cases(2)}
    rows = [{"prompt": case.prompt, "seed": case.seed} for case in asked["captions"]]
    report = tmp_path / "quality.json"
    report.write_text(json.dumps({"rows": {"captions": rows}}))
    assert quality.rows_of(report, asked) == {"captions": rows}
    with pytest.raises(SystemExit, match="not of the same --captions"):
        quality.rows_of(report, {"captions": quality.cases(3)})


@pytest.mark.parametrize(
    ("written", "said"),
    [({"rows": [{"prompt": "a red circle", "seed": 1}]}, "an older report, its rows are not by part"), ({}, "it has no rows")],
)
def test_a_report_without_rows_by_part_is_refused_for_what_it_is(tmp_path, written, said):
    report = tmp_path / "quality.json"
    report.write_text(json.dumps(written))
    with pytest.raises(SystemExit, match=said):
        quality.rows_of(report, {"captions": quality.cases(2)})


def test_the_judge_reads_what_the_training_world_draws():
    pytest.importorskip("torch")
    from training.world import COLOURS, MOTIONS, SHAPES, render, sample_scenes

    scenes = sample_scenes(6, 12, two=0.0)
    clips = render(scenes, 9, 128, 128)
    for row in range(6):
        frames = ((clips[row].permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
        colour, shape = list(COLOURS)[scenes.colour[row, 0]], SHAPES[scenes.shape[row, 0]]
        case = quality.Case(colour, shape, MOTIONS[scenes.motion[row, 0]], "medium", "black", 0)
        verdict = quality.judge(case, frames)
        assert verdict["both"] and verdict["motion"], verdict  # noqa: PT018 - one verdict


def test_held_out_is_the_rule_of_the_training_world():
    pytest.importorskip("torch")
    from training.world import held_out

    assert all(
        held_out(c, s, m) == quality.held_out(c, s, m) for c in quality.PAINT for s in quality.SHAPES for m in quality.MOTIONS
    )
