# ruff: noqa: TID253 - tests of numerical code import it at the top
"""Scenes, their pictures and their captions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training.architecture import build_tokenizer
from training.captions import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, STRANGE, bare_captions, captions, words
from training.world import (
    ALLOWED,
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    GRAY_BACKGROUNDS,
    MOTIONS,
    SHAPES,
    covered,
    held_out,
    render,
    sample_scenes,
)
from transformers import AutoTokenizer


def test_one_seed_draws_one_world():
    one, other = (render(sample_scenes(3, 5), 5, 48, 64) for _ in range(2))
    assert one.shape == (3, 3, 5, 48, 64)
    assert torch.equal(one, other)
    assert not torch.equal(one, render(sample_scenes(3, 6), 5, 48, 64))
    assert one.abs().max() <= 1


def test_captions_say_what_the_scene_holds_and_every_word_is_known():
    scenes = sample_scenes(300, 1, two=0.0)
    tokenizer = build_tokenizer()
    unknown = {STRANGE, *words("clear first follows keeps last line same shines side size speed stay straight")}  # of the asides
    for row, text in enumerate(captions(scenes, 2)):
        colour = list(COLOURS)[scenes.colour[row, 0]]
        assert any(word in text for word in (colour, "turquoise", "violet"))
        plain = " ".join(word for word in words(text) if word not in unknown)
        assert tokenizer.unk_token_id not in tokenizer(plain).input_ids, text
    assert captions(scenes, 2) == captions(scenes, 2)


def test_bare_captions_say_what_happens_and_not_to_what():
    scenes = sample_scenes(300, 1)
    subjects = {word for table in (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS) for said in table.values() for word in said}
    said = bare_captions(scenes, 2)
    for row, text in enumerate(said):
        if STRANGE in text or len(text.split()) > 25:
            continue  # chatter may hold any word
        assert not subjects & set(words(text)), text
        if MOTIONS[scenes.motion[row, 0]] == "rotate":
            assert any(word in text for word in ("rotat", "spin", "turn")), text
    assert len(set(said)) > 200
    assert bare_captions(scenes, 2) == said


MODEL = Path(__file__).resolve().parents[1] / "wan_host_tiny_wan/model"


@pytest.mark.skipif(not MODEL.exists(), reason="no checkpoint in this tree")
def test_the_words_are_those_of_the_shipped_weights():
    """A word more would renumber the others: weights could not be trained on from."""
    assert build_tokenizer().get_vocab() == AutoTokenizer.from_pretrained(MODEL / "tokenizer").get_vocab()


def test_grounds_of_every_colour_are_drawn_and_never_hide_an_object():
    scenes = sample_scenes(2000, 6)
    assert set(scenes.background) == set(range(len(BACKGROUNDS)))
    ground = scenes.background[:, None] - len(GRAY_BACKGROUNDS)
    assert not (ground == scenes.colour).any()
    row = int((scenes.background == BACKGROUNDS.index("blue")).argmax())
    corner = render(scenes[row : row + 1], 1, 64, 64)[0, :, 0, 0, 0]
    assert corner.argmax() == 2, "a blue background is blue"


def test_some_captions_are_followed_by_chatter_that_names_nothing():
    said = captions(sample_scenes(400, 7), 8)
    chatter = [text for text in said if text.count(STRANGE) > 5]
    assert 0.05 < len(chatter) / len(said) < 0.3
    assert max(len(text.split()) for text in chatter) > 40


def test_strange_and_shouted_prompts_are_tokenized_like_any():
    tokenizer = build_tokenizer()
    assert tokenizer("RED Circle.").input_ids == tokenizer("red circle .").input_ids
    assert tokenizer.unk_token_id in tokenizer("an unheard-of 世界").input_ids
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_held_out_combinations_are_never_drawn():
    scenes = sample_scenes(4000, 3)
    assert ALLOWED[scenes.colour, scenes.shape, scenes.motion].all()
    kept = sum(held_out(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS)
    assert 0.08 < kept / (len(COLOURS) * len(SHAPES) * len(MOTIONS)) < 0.17


def test_objects_move_where_their_motion_says():
    scenes = sample_scenes(80, 4, two=0.0)
    scenes = scenes[scenes.background < len(GRAY_BACKGROUNDS)]
    clips = render(scenes, 3, 64, 64)
    chroma = clips.amax(1) - clips.amin(1)  # (clips, frames, height, width)
    xs = torch.arange(64.0)
    for row, clip in enumerate(chroma):
        x, y = ((clip.sum(d) * xs).sum(-1) / clip.sum((1, 2)) for d in (1, 2))
        dx, dy = DIRECTIONS.get(MOTIONS[scenes.motion[row, 0]], (0, 0))
        for moved, asked in ((x[-1] - x[0], dx), (y[-1] - y[0], dy)):
            assert moved * asked > 4 if asked else abs(moved) < 2


def test_covered_is_where_objects_are():
    scenes = sample_scenes(20, 9)
    dark, bright = (render(replace(scenes, object_rgb=np.full_like(scenes.object_rgb, v)), 5, 48, 64) for v in (0.0, 1.0))
    seen = (bright - dark).mean(1, keepdim=True) / 2
    mask = covered(scenes, 5, 48, 64)
    assert mask.shape == (20, 1, 5, 48, 64)
    assert torch.allclose(mask, seen, atol=1e-5)
