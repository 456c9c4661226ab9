from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from wan_host_qwen_enhance.enhancement import Enhancer
from wan_host_qwen_enhance.model import Draft, OutOfTime
from wan_host_qwen_enhance.settings import read_settings

from wan_host import EnhanceRequest, JobCancelled

PROMPT = "an old fisherman mends a net"
GOOD = "He sits on the pier, his hands moving in a steady rhythm while the camera slowly moves in."
POOR = "The fisherman mends a net."


@dataclass
class Script:
    """A language model that writes what it is told to, in the place of the real one."""

    drafts: list[str | Exception]
    source: str = "scripted"
    name: str = "scripted"
    context_length: int = 1000
    asked: list[str] = field(default_factory=list)
    samplings: list[object] = field(default_factory=list)
    closed: bool = False

    def count(self, text):
        return len(text.split())

    def text_for(self, instruction, prompt, opening):
        return f"[{instruction.system[:20]}] {prompt} > {opening}"

    def write(self, text, sampling, context, *, deadline):
        self.asked.append(text)
        self.samplings.append(sampling)
        draft = self.drafts.pop(0)
        if isinstance(draft, Exception):
            raise draft
        return Draft(text=draft, tokens=self.count(draft), finished=True)

    def close(self):
        self.closed = True


@pytest.fixture
def enhance(recorder, monkeypatch) -> Callable:
    def call(script, prompt=PROMPT, *, enhancer=None, media="video", max_tokens=512, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"WAN_HOST_QWEN_ENHANCE_{name.upper()}", value)
        request = EnhanceRequest(prompt=prompt, job_type=f"{media}7b_fast_enhanced", media=media, max_tokens=max_tokens)
        return (enhancer or Enhancer(script, read_settings())).enhance(request, recorder())

    return call


def test_a_good_first_answer_stands_after_the_prompt_and_is_named_by_its_model(enhance):
    script = Script([GOOD])
    result = enhance(script)
    assert (result.prompt, result.source, result.reason) == (f"An old fisherman mends a net. {GOOD}", "scripted", "")
    assert len(script.asked) == 1


def test_the_answer_is_begun_with_the_prompt(enhance):
    script = Script([GOOD])
    enhance(script)
    assert script.asked[0].endswith("> An old fisherman mends a net.")
    script = Script([GOOD])
    enhance(script, "fisherman, net,")
    assert script.asked[0].endswith("> Fisherman, net.")


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("고양이 한 마리", "고양이 한 마리."),
        ("แมวหนึ่งตัว", "แมวหนึ่งตัว."),
        ("一只猫\uff0c", "一只猫。"),
        ("猫がいる", "猫がいる。"),
        ("एक बिल्ली है।", "एक बिल्ली है।"),
        ("هل هذا قط؟", "هل هذا قط؟"),
        ("a cat waits\u2026", "A cat waits\u2026"),
        ('a sign says "Stop."', 'A sign says "Stop."'),
        ("iPhone on a table", "iPhone on a table."),
        (",;", ",;."),
    ],
)
def test_a_prompt_becomes_a_sentence_of_its_own_script(enhance, prompt, opening):
    script = Script(["", ""])
    enhance(script, prompt)
    assert script.asked[0].endswith(f"> {opening}")


def test_a_chinese_prompt_ends_with_its_own_full_stop(enhance):
    written = "它在雪地里慢慢地走,镜头静静地跟着它,柔和的光落在它的毛上。"
    assert enhance(Script([written]), "一只猫").prompt == f"一只猫。 {written}"


def test_only_the_sentences_that_fit_the_prompt_are_added(enhance):
    result = enhance(Script([f"{GOOD} A small boat appears behind him. You see him smile."]))
    assert result.prompt == f"An old fisherman mends a net. {GOOD}"


def test_a_prompt_never_loses_a_word(enhance):
    prompt = "two friends, Amelie and Jo, meet under a yellow umbrella (35mm, f/1.8), while it's raining"
    result = enhance(Script(["Soft light falls through the leaves while the camera follows them slowly."]), prompt)
    assert result.source == "scripted"
    assert result.prompt.startswith(f"T{prompt[1:]}. ")


def test_the_retry_draws_other_words(enhance):
    script = Script([POOR, GOOD])
    result = enhance(script)
    assert (result.prompt, result.source) == (f"An old fisherman mends a net. {GOOD}", "scripted")
    assert script.asked[0] == script.asked[1]
    first, second = script.samplings
    assert (first.temperature, second.temperature) == (0, 0.7)
    assert first.seed != second.seed


def test_the_retry_is_no_cooler_than_the_setting(enhance):
    script = Script([POOR, GOOD])
    enhance(script, temperature="1.1")
    assert [sampling.temperature for sampling in script.samplings] == [1.1, 1.1]


def test_where_both_are_no_good_the_prompt_stays_as_it_was_and_the_reasons_are_given(enhance):
    prompt = "an old  fisherman\nmends a net"
    result = enhance(Script([POOR, ""]), prompt)
    assert (result.prompt, result.source) == (prompt, "none")
    assert result.reason == "scripted wrote nothing usable: it adds next to nothing; in the retry: it is empty"


def test_the_reason_says_so_where_no_sentence_fits(enhance):
    result = enhance(Script(["You see him smile.", "A boat appears."]))
    assert result.reason == (
        "scripted wrote nothing usable: none of its sentences fits (the first one: a voice); "
        "in the retry: none of its sentences fits (the first one: a change)"
    )


def test_a_prompt_that_leaves_no_room_is_left_alone(enhance):
    prompt = " ".join(f"word{index}" for index in range(30))
    result = enhance(Script([]), prompt, max_tokens=50)
    assert (result.prompt, result.source) == (prompt, "none")
    assert (
        result.reason
        == "the prompt fills the 40 of the enhancer's tokens that surely fit the video model's 50: 10 are left to write"
    )


def test_a_refusal_is_seen_although_its_sentence_is_taken_off(enhance):
    result = enhance(Script([f"I'm sorry, I cannot describe that. {GOOD}", "I can't."]))
    assert result.reason.endswith("it is a refusal; in the retry: it is a refusal")


def test_a_result_beyond_the_video_model_s_limit_is_rejected(enhance):
    long = f"{GOOD} " + " ".join(f"word{index}" for index in range(40))
    result = enhance(Script([long, long]), max_tokens=50)
    assert result.source == "none"
    assert "tokens, 40 are allowed" in result.reason


def test_the_model_is_never_asked_for_more_tokens_than_the_limit(enhance):
    script = Script([GOOD])
    enhance(script, max_tokens=100)
    assert script.samplings[0].max_new_tokens == 74  # less the prompt's six


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_left_alone(enhance, prompt):
    result = enhance(Script([]), prompt)
    assert (result.prompt, result.source, result.reason) == (prompt, "none", "the prompt is empty")


def test_a_prompt_that_does_not_fit_the_model_s_context_is_left_alone(enhance):
    prompt = "fish " * 600
    result = enhance(Script([]), prompt, max_tokens=4096)
    assert (result.prompt, result.source) == (prompt, "none")
    assert "too long for scripted" in result.reason


def test_a_known_prompt_is_not_written_again(enhance):
    script = Script([GOOD, POOR, POOR])
    enhancer = Enhancer(script, read_settings())
    assert enhance(script, enhancer=enhancer) is enhance(script, enhancer=enhancer)
    assert len(script.asked) == 1
    assert enhance(script, "a whale", enhancer=enhancer) is enhance(script, "a whale", enhancer=enhancer)
    assert len(script.asked) == 3


def test_another_instruction_limit_or_medium_is_another_enhancement(enhance, tmp_path):
    file = tmp_path / "video.txt"
    file.write_text("One.")
    script = Script([GOOD] * 4)
    enhancer = Enhancer(script, read_settings().model_copy(update={"video_instructions": file}))
    enhance(script, enhancer=enhancer)
    file.write_text("Two.")
    enhance(script, enhancer=enhancer)
    enhance(script, enhancer=enhancer, max_tokens=256)
    enhance(script, enhancer=enhancer, media="image")
    enhance(script, enhancer=enhancer, media="image")
    assert len(script.asked) == 4


def test_only_so_many_are_remembered_and_the_least_used_is_forgotten(enhance):
    prompts = ["a fisherman", "an old fisherman", "an old net"]
    script = Script([GOOD] * 9)
    enhancer = Enhancer(script, read_settings().model_copy(update={"cache_size": 2}))
    for prompt in (prompts[0], prompts[1], prompts[0], prompts[2]):
        enhance(script, prompt, enhancer=enhancer)
    assert len(script.asked) == 3
    enhance(script, prompts[0], enhancer=enhancer)
    assert len(script.asked) == 3
    enhance(script, prompts[1], enhancer=enhancer)
    assert len(script.asked) == 4


def test_a_cache_of_none_remembers_nothing(enhance):
    script = Script([GOOD, GOOD])
    enhancer = Enhancer(script, read_settings().model_copy(update={"cache_size": 0}))
    enhance(script, enhancer=enhancer)
    enhance(script, enhancer=enhancer)
    assert len(script.asked) == 2


def test_out_of_time_the_prompt_stays_as_it_was_and_nothing_is_remembered(enhance):
    script = Script([OutOfTime(), GOOD])
    enhancer = Enhancer(script, read_settings())
    result = enhance(script, enhancer=enhancer)
    assert (result.prompt, result.source) == (PROMPT, "none")
    assert result.reason == "it took longer than WAN_HOST_QWEN_ENHANCE_TIMEOUT, 120 s"
    assert enhance(script, enhancer=enhancer).source == "scripted"


def test_a_cancel_is_passed_on(enhance):
    with pytest.raises(JobCancelled):
        enhance(Script([JobCancelled("job 1 was cancelled")]))


def test_a_prompt_draws_its_own_words_each_time_the_same(enhance):
    script = Script([GOOD, GOOD])
    enhance(script, temperature="0.7")
    enhance(script, temperature="0.7")
    assert script.samplings[0] == script.samplings[1]
    assert script.samplings[0].temperature == 0.7


def test_closing_lets_go_of_the_model():
    script = Script([])
    Enhancer(script, read_settings()).close()
    assert script.closed
