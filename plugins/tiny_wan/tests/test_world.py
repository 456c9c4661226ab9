# ruff: noqa: TID253 - tests of numerical code import it at the top
"""Scenes, their pictures and their captions."""

import torch
from training.architecture import build_tokenizer
from training.captions import STRANGE, captions
from training.world import (
    ALLOWED,
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    GRAY_BACKGROUNDS,
    MOTIONS,
    SHAPES,
    held_out,
    render,
    sample_scenes,
)


def test_one_seed_draws_one_world():
    one, other = (render(sample_scenes(3, 5), 5, 48, 64) for _ in range(2))
    assert one.shape == (3, 3, 5, 48, 64)
    assert torch.equal(one, other)
    assert not torch.equal(one, render(sample_scenes(3, 6), 5, 48, 64))
    assert one.abs().max() <= 1


def test_captions_say_what_the_scene_holds_and_every_word_is_known():
    scenes = sample_scenes(300, 1, two=0.0)
    tokenizer = build_tokenizer()
    for row, text in enumerate(captions(scenes, 2)):
        colour = list(COLOURS)[scenes.colour[row, 0]]
        assert any(word in text for word in (colour, "turquoise", "violet"))
        assert STRANGE in text or tokenizer.unk_token_id not in tokenizer(text).input_ids, text
    assert captions(scenes, 2) == captions(scenes, 2)


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
