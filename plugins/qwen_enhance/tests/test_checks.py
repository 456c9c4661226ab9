import pytest
from wan_host_qwen_enhance.checks import contradiction, lost_words, objection, tidy, token_limit
from wan_host_qwen_enhance.instruction import read_instruction
from wan_host_qwen_enhance.settings import read_settings

PROMPT = "a red circle moves to the right on a blue background"
GOOD = (
    "A red circle glides steadily to the right across a plain blue background, moving at the same pace from edge to edge. "
    "The camera stands still. Soft even light keeps the colours flat and clear."
)


@pytest.fixture
def video():
    return read_instruction("video", read_settings())


def test_an_enhancement_that_keeps_the_prompt_is_accepted(video):
    assert objection(GOOD, PROMPT, video) is None


@pytest.mark.parametrize("text", ["", "   ", "...", "\n"])
def test_an_empty_text_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it is empty"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with a red circle that moves right on a blue background today.",
        "As an AI language model, a red circle that moves right on a blue background is beyond what I do.",
        "Unfortunately, I do not draw; a red circle moves to the right on a blue background.",
        "A red circle on a blue background moves right, but I cannot provide more than that to you.",
    ],
)
def test_a_refusal_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it is a refusal"


def test_a_chinese_refusal_is_rejected(video):
    assert objection("抱歉，我不能描述红色的猫", "红色的猫在奔跑", video) == "it is a refusal"  # noqa: RUF001  # as it is written


def test_the_word_sorry_in_a_scene_is_no_refusal(video):
    prompt = "a child holds a card that says sorry"
    assert objection("A child slowly holds up a card that says sorry, in warm light, close to the camera.", prompt, video) is None


def test_talk_about_the_task_is_rejected(video):
    text = f"{GOOD} I hope this rewritten text is useful, let me know."
    assert objection(text, PROMPT, video) == "it talks about the task"


@pytest.mark.parametrize("text", [PROMPT, PROMPT.upper() + ".", f"  {PROMPT} !"])
def test_the_prompt_unchanged_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it is the prompt unchanged"


def test_the_instruction_repeated_is_rejected(video):
    text = f"{PROMPT}. {video.system.splitlines()[2]} {video.system.splitlines()[3]}"
    assert objection(text, PROMPT, video) == "it repeats the instruction"


def test_an_example_of_the_instruction_repeated_is_rejected(video):
    text = "A dog on a hill. " + video.examples[0][1]
    assert objection(text, "a dog on a hill", video) == "it repeats the instruction"


@pytest.mark.parametrize(
    "text",
    [
        f"{PROMPT} and it moves and moves and it moves and moves and it moves and moves and it moves and moves",
        f"{PROMPT} very very very bright",
    ],
)
def test_endless_repetition_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it repeats itself"


def test_a_text_that_lost_the_subject_is_rejected_and_the_words_named(video):
    text = "A shape glides steadily across a plain backdrop at the same pace, seen by a still camera in soft light."
    assert objection(text, PROMPT, video) == "it lost red, blue"


@pytest.mark.parametrize("text", ["red circle moves right, blue background", f"{PROMPT}, bright"])
def test_a_text_that_adds_next_to_nothing_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it adds next to nothing"


def test_a_long_prompt_may_be_rewritten_at_its_own_length(video):
    prompt = " ".join(f"word{index}" for index in range(70))
    assert objection(f"{prompt} again", prompt, video) is None


@pytest.mark.parametrize("text", [f"{GOOD} \ufffd", f"{GOOD} \x1b"])
def test_bytes_that_are_no_text_are_rejected(video, text):
    assert objection(text, PROMPT, video) == "it holds characters of no text"


def test_an_answer_that_slips_into_another_script_is_rejected(video):
    assert objection(f"{GOOD} 镜头缓慢推进", PROMPT, video) == "it changes the script"


def test_colours_numbers_and_names_must_all_be_kept():
    prompt = "two friends meet Amelie in a park under a yellow umbrella while autumn leaves fall slowly from tall trees"
    kept = "friends meet in a park under an umbrella while autumn leaves fall slowly from tall trees"
    assert lost_words(kept, prompt) == ["two", "amelie", "yellow"]


def test_most_of_the_other_words_are_enough():
    assert lost_words("an old man repairs his fishing net at a pier", "an old man mends his fishing net at a pier") == []
    assert lost_words("a man sits", "an old man mends his fishing net at a pier") == ["old", "mends", "fishing", "net", "pier"]


def test_other_forms_of_a_word_count_as_kept():
    assert lost_words("Waves roll while dogs are running", "a dog runs by the wave") == []


def test_chinese_prompts_are_judged_by_their_characters():
    assert lost_words("一只红色的猫在雪地里慢慢地奔跑, 镜头跟随着它", "红色的猫在雪地里奔跑") == []
    assert lost_words("一条蓝色的鱼游过珊瑚", "红色的猫在雪地里奔跑") != []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The circle drifts towards the left.", "left"),
        ("It moves from left to right.", None),
        ("A blue circle follows it.", "blue circl"),
        ("The light is red on the right.", None),
        ("It casts a golden glow.", None),
    ],
)
def test_another_direction_or_colour_than_the_prompt_s_is_a_contradiction(text, found):
    assert contradiction(text, PROMPT) == found


def test_forms_of_a_direction_are_one_direction():
    assert contradiction("It sinks downwards.", "a kite rises up") == "down"
    assert contradiction("It sinks down.", "a kite rises upwards") == "down"


def test_a_thing_that_shrinks_must_not_grow():
    assert contradiction("It seems to be growing.", "a star shrinks") == "grow"


def test_a_prompt_with_both_directions_contradicts_neither():
    assert contradiction("It swings left and right", "a lamp swings from left to right") is None


def test_contradicting_and_repeated_sentences_are_left_out():
    text = "A red circle moves to the right. It then turns left! It is bright. It is bright."
    assert tidy(text, PROMPT, finished=True) == "A red circle moves to the right. It is bright."


def test_a_prompt_that_names_hues_is_given_no_others_after_the_first_sentence():
    text = "A red kite rises under a blue sky. Green hills roll below. The white string is tight."
    assert tidy(text, "a red kite", finished=True) == "A red kite rises under a blue sky. The white string is tight."
    assert tidy(text, "a kite", finished=True) == text


def test_speech_and_talk_to_the_reader_are_left_out_unless_the_prompt_has_them():
    text = 'A cat sleeps. "Come in," says the cat. If you look closely, it breathes. You see it.'
    assert tidy(text, "a cat", finished=True) == "A cat sleeps."
    assert tidy('A sign reads "OPEN".', 'a sign that reads "OPEN"', finished=True) == 'A sign reads "OPEN".'


@pytest.mark.parametrize(
    "text",
    [
        'Enhanced: "A cat sleeps."',
        "Sure! Here is the enhanced prompt: A cat sleeps.",
        "**Enhanced Prompt:** A cat sleeps.",
        "Here's a detailed version of your prompt:\n\nA cat sleeps.",
        "- A cat sleeps.",
        "“A cat sleeps.”",
        "A cat sleeps.\n\nPrompt: a dog\nEnhanced: A dog runs.",
        "A cat\nsleeps.",
    ],
)
def test_what_surrounds_the_paragraph_is_taken_off(text):
    assert tidy(text, "a cat", finished=True) == "A cat sleeps."


def test_a_sentence_that_was_cut_off_is_left_out():
    assert tidy("A cat sleeps. Its whiskers tre", "a cat", finished=False) == "A cat sleeps."
    assert tidy("A cat sleeps. Its whiskers tre", "a cat", finished=True) == "A cat sleeps. Its whiskers tre"
    assert tidy("A cat that never ends", "a cat", finished=False) == ""


def test_numbers_with_decimals_and_abbreviations_survive():
    assert tidy("A clock shows 3.5 seconds.", "a clock", finished=True).replace(" ", "") == "Aclockshows3.5seconds."


def test_there_is_room_between_two_tokenizers():
    assert token_limit(512) == 409
