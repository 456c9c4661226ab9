import pytest
from wan_host_qwen_enhance.words import coloured, content_words, motions, stem, words


@pytest.mark.parametrize(
    "forms",
    [
        ("run", "runs", "running"),
        ("move", "moves", "moved", "moving"),
        ("fly", "flies", "flying"),
        ("city", "cities"),
        ("wave", "waves", "waving"),
        ("fox", "foxes"),
        ("horse", "horses", "horse's"),
    ],
)
def test_forms_of_a_word_share_a_stem(forms):
    assert len({stem(form) for form in forms}) == 1


@pytest.mark.parametrize(("one", "other"), [("cat", "car"), ("red", "read"), ("sing", "sea"), ("bus", "bud"), ("star", "stone")])
def test_different_words_do_not(one, other):
    assert stem(one) != stem(other)


def test_content_words_leave_out_what_says_nothing_and_repetitions():
    assert content_words("A video of a cat and the other cat on a roof") == ["cat", "other", "roof"]


def test_scripts_without_spaces_are_read_by_character():
    assert words("红色的猫 runs") == ["红", "色", "的", "猫", "runs"]


def test_colours_are_read_with_their_things():
    assert coloured("A red circle on a blue background, red and white") == {stem("circle"): {"red"}, stem("background"): {"blue"}}


@pytest.mark.parametrize(
    "text", ["a red and white circle", "a red, white circle", "red, and white circles", "Red or white circle"]
)
def test_colours_that_are_joined_belong_to_the_same_thing(text):
    assert coloured(text) == {stem("circle"): {"red", "white"}}


def test_colours_before_no_thing_belong_to_none():
    assert coloured("it is red and spins, a redwood, a blue and a grey ring") == {stem("ring"): {"gray"}}


def test_motions_have_one_name_in_all_their_forms():
    assert motions("moving rightwards, upward, then growing") == {"move", "right", "up", "grow"}
    assert motions("it expands, spins and is motionless") == {"grow", "rotate", "still"}


def test_a_way_from_one_side_to_another_is_the_other():
    assert motions("from left to right") == motions("From the left towards the right") == {"right"}


def test_gray_is_written_in_two_ways():
    assert words("Grey and gray") == ["gray", "and", "gray"]
