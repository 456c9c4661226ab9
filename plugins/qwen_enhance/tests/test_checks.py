import pytest
from wan_host_qwen_enhance.checks import additions, emptiness, misfit, objection, token_limit
from wan_host_qwen_enhance.instruction import read_instruction
from wan_host_qwen_enhance.settings import read_settings

PROMPT = "a red circle moves to the right on a blue background"
GOOD = (
    "It glides steadily across the plain background, moving at the same pace from edge to edge. "
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


def test_the_instruction_repeated_is_rejected(video):
    text = f"{PROMPT}. {video.system.splitlines()[2]} {video.system.splitlines()[3]}"
    assert objection(text, PROMPT, video) == "it repeats the instruction"


def test_an_example_of_the_instruction_repeated_is_rejected(video):
    text = video.examples[0][1]
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


@pytest.mark.parametrize(
    "text",
    [
        "A red circle moves right.",
        "It is bright.",
        "The circle moves and moves on a blue background.",
        "It is the same, and it is so with the light, which is the light of all the light there is.",
    ],
)
def test_a_text_that_adds_next_to_nothing_is_rejected(video, text):
    assert objection(text, PROMPT, video) == "it adds next to nothing"


@pytest.mark.parametrize("text", [f"{GOOD} \ufffd", f"{GOOD} \x1b"])
def test_bytes_that_are_no_text_are_rejected(video, text):
    assert objection(text, PROMPT, video) == "it holds characters of no text"


def test_an_answer_that_slips_into_another_script_is_rejected(video):
    assert objection(f"{GOOD} 镜头缓慢推进", PROMPT, video) == "it changes the script"


@pytest.mark.parametrize(
    ("prompt", "sentence", "why"),
    [
        (PROMPT, "The circle drifts towards the left.", "the motion left"),
        (PROMPT, "It keeps on from right to left.", "the motion left"),
        (PROMPT, "It rises upwards.", "the motion up"),
        (PROMPT, "It is growing all the time.", "the motion grow"),
        (PROMPT, "It stays still in its place.", "that it is still"),
        (PROMPT, "The camera stands still.", "that it is still"),
        ("a star shrinks", "It expands with every step.", "the motion grow"),
        ("a star shrinks", "It keeps its size all the way.", "that the size stays"),
        ("a ring rotates", "It is going down in a straight line.", "the motion down"),
        ("a cross standing still", "It moves in a straight line.", "that it moves"),
        ("a kite rises up", "It sinks downward.", "the motion down"),
    ],
)
def test_a_sentence_with_another_motion_than_the_prompt_s_does_not_fit(video, prompt, sentence, why):
    assert misfit(sentence, prompt, video) == why


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (PROMPT, "It moves steadily from left to right."),
        (PROMPT, "It slides rightwards at an even pace."),
        (PROMPT, "The camera is static."),
        (PROMPT, "The motion is smooth and continuous, at the same speed from the first frame to the last."),
        ("a dog runs", "The camera stands still."),
        ("a cross standing still", "The camera pans slowly."),
        ("a car moves while a man stands still", "The man stays still as the car moves."),
        ("a lamp swings from the wall, left and right", "It swings left and right."),
        ("a dog on a beach", "It runs to the left."),
        ("a dog moves on a beach", "It runs to the left."),
        ("a ring rotates", "It spins at an even pace."),
    ],
)
def test_a_sentence_that_goes_with_the_prompt_s_motion_fits(video, prompt, sentence):
    assert misfit(sentence, prompt, video) is None


@pytest.mark.parametrize(
    ("prompt", "sentence", "why"),
    [
        (PROMPT, "A blue circle follows it.", "the blue circl"),
        (PROMPT, "A white line stands behind it.", "the colour white"),
        (PROMPT, "The circle casts red and purple light.", "the colour purple"),
        (PROMPT, "The scene is green.", "the colour green"),
        (PROMPT, "Three shadows follow it.", "the number three"),
        (PROMPT, "It goes on for 10 seconds.", "the number 10"),
        (PROMPT, 'It says "hello" to the crowd.', "a voice"),
        (PROMPT, "You see it from above.", "a voice"),
        (PROMPT, "A small boat appears above it.", "a change"),
        (PROMPT, "Other things are not visible.", "what is absent"),
        (
            "on a dotted background, a pink star growing",
            "It grows on a pink background with its own pattern.",
            "the pink background",
        ),
        (PROMPT, "There are no other objects.", "what is absent"),
        (PROMPT, "It doesn't stop.", "what is absent"),
        (PROMPT, "It stays as it was, but now with a line on top.", "a change"),
        (PROMPT, "There's a small triangle on top of it.", "something new"),
        (PROMPT, "There are trees in the distance.", "something new"),
        (PROMPT, "I see clouds.", "a voice"),
        (PROMPT, "It looks like an old photograph.", "a comparison"),
        (PROMPT, "It goes on as if by magic.", "a comparison"),
        ("a cat", "It plays with a white square.", "an example's subject"),
        ("a cat", "It trots along the edge of the water at a calm and even pace.", "a copy of the instruction"),
        ("a cat", "Keep it consistent in time: one continuous shot of a few seconds.", "a copy of the instruction"),
    ],
)
def test_a_sentence_that_brings_in_something_else_does_not_fit(video, prompt, sentence, why):
    assert misfit(sentence, prompt, video) == why


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (PROMPT, "The red circle keeps its blue background."),
        (PROMPT, "It casts a golden glow."),
        (PROMPT, "The camera is static."),
        ("a gray cat", "Its grey fur shines."),
        ("a kite", "It rises under a blue sky above green hills."),
        ("two dogs", "The two dogs run side by side."),
        ('a sign that reads "OPEN"', 'The sign reads "OPEN" in soft light.'),
        ("a ghost appears in a hall", "It appears slowly."),
        ("there is a cat on a mat", "There is a cat in the middle of the mat."),
        ("a red and white circle", "The red circle keeps its shape."),
        ("a star on a dotted background", "The star shines on a pink background."),
        ("um gato no telhado", "Ele fica parado no alto, com luz suave."),
        ("due cani nel parco", "I cani corrono nel parco, e il sole me li mostra."),
    ],
)
def test_what_the_prompt_has_or_leaves_open_fits(video, prompt, sentence):
    assert misfit(sentence, prompt, video) is None


@pytest.mark.parametrize("sentence", ["A red circle moves to the right on a blue background!", "On a blue background.", "Red."])
def test_what_the_prompt_says_is_not_said_again(video, sentence):
    assert misfit(sentence, PROMPT, video) == "what the prompt says"
    assert additions(f"{sentence} {GOOD}", PROMPT, video, finished=True) == additions(GOOD, PROMPT, video, finished=True)


def test_a_sentence_with_other_punctuation_is_the_same_sentence(video):
    assert additions("The camera is static. The camera is static!", PROMPT, video, finished=True) == "The camera is static."


def test_a_speech_in_another_language_is_a_voice(video):
    assert misfit("O gato diz “bom dia”.", "um gato no telhado", video) == "a voice"


def test_a_prompt_that_the_model_made_up_is_no_addition(video):
    text = "Prompt: two boys run through a quiet green park at dusk\nEnhanced: Two boys run."
    assert additions(text, "two birds", video, finished=True) == ""


def test_why_nothing_is_left_is_said_as_it_is(video):
    assert emptiness("", PROMPT, video, finished=True) == "it is empty"
    for text, finished in (("Prompt: a dog\nEnhanced: A dog runs.", True), ("It glides on and", False)):
        assert emptiness(text, PROMPT, video, finished=finished) == "it has no whole sentence for this prompt"
    text = "It turns left. You see it."
    assert emptiness(text, PROMPT, video, finished=True) == "none of its sentences fits (the first one: the motion left)"


def test_sentences_that_do_not_fit_or_repeat_are_left_out(video):
    text = "It glides to the right. It then turns left! it is bright. It is bright. It is bright."
    assert additions(text, PROMPT, video, finished=True) == "It glides to the right. It is bright."


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
def test_what_surrounds_the_paragraph_is_taken_off(video, text):
    assert additions(text, "a cat", video, finished=True) == "A cat sleeps."


def test_a_sentence_that_was_cut_off_is_left_out(video):
    assert additions("A cat sleeps. Its whiskers tre", "a cat", video, finished=False) == "A cat sleeps."
    assert additions("A cat sleeps. Its whiskers tre", "a cat", video, finished=True) == "A cat sleeps. Its whiskers tre"
    assert additions("A cat that goes on", "a cat", video, finished=False) == ""


@pytest.mark.parametrize(
    "text",
    [
        "The clock shows 3.5 seconds. It ticks.",
        "Dr. Who smiles. Mrs. White stands on St. Mark's square.",
        "iPhone light falls on his face.",
        "She waits\u2026 He waves.",
    ],
)
def test_decimals_abbreviations_and_names_survive(video, text):
    assert additions(text, "a white clock at 3.5, no hands, and Dr. Who", video, finished=True) == text


def test_a_stop_after_a_number_ends_a_sentence(video):
    assert (
        additions("It is 1990. it is warm. It turns left.", f"1990: {PROMPT}", video, finished=True) == "It is 1990. It is warm."
    )


def test_there_is_room_between_two_tokenizers():
    assert token_limit(512) == 409
