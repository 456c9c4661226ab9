"""Is what the model wrote an enhancement? ``tidy`` takes off what surrounds it, ``objection`` says what speaks against it.

Every rule here turns away texts that a small model really wrote. A rule that is in doubt rejects: the prompt of the job is
always there to fall back on.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from wan_host_qwen_enhance.instruction import ENHANCED, PROMPT, Instruction
from wan_host_qwen_enhance.words import COLOURS, HUES, NUMBERS, OPPOSITES, UNSPACED, coloured, content_words, stem, stems, words

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT_SHARE = 0.8
"""So many of the prompt's words that carry meaning must stand in the result; colours and numbers must all."""
LEAST_ADDED = 5
"""So many words more than the prompt, unless that is long already: then a rewriting may be as long."""
LONG_PROMPT = 60
ECHO_SHARE = 0.3
REPEATED_SHARE = 0.2
LIMIT_MARGIN = 0.8
"""Tokens are counted with the enhancer's tokenizer, the limit is that of the video model's own: this is the room between them."""
_RUN = 4
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+[\"'”’)]*|[^.!?。！？]+$")  # noqa: RUF001  # sentence ends of Chinese and Japanese
_END = re.compile(r"[.!?。！？][\"'”’)]*$")  # noqa: RUF001  # as above
_LABEL = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)\b[^.:\n]{0,60}[.:!,]\s*)?(?:here(?:'s| is)\b[^:\n]{0,80}:\s*)?"
    r"(?:\**(?:enhanced|rewritten|improved|detailed|final|new)(?: (?:prompt|version|text))?\**\s*:\**\s*)?",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am)(?: very| so)? (?:sorry|unable|not able|afraid)|i (?:can(?:no|')?t|cannot|won't|will not|apologi[sz]e)"
    r"|(?:i'm|i am|as) an? (?:ai|artificial|language model|assistant)|(?:against|violates?) (?:my|our|the) (?:guidelines|polic)"
    r"|unfortunately, i\b|not (?:able|allowed) to (?:help|assist|provide|generate|fulfil))"
    r"|抱歉|无法提供|作为(?:一个)?(?:人工智能|AI)",
    re.IGNORECASE,
)
_VOICE = re.compile(r"[\"“”]|\b(?:I|[Mm]e|[Mm]y|[Yy]ou|[Yy]ours?|[Yy]ourself)\b")
"""Speech, and stories told by or to somebody: a small model drifts into them after a few sentences."""
_ADDRESS = re.compile(
    r"\b(?:this (?:prompt|instruction|paragraph|rewrit\w+)|the (?:prompt|instruction)s? (?:is|are|asks?|says?)|let me know"
    r"|i (?:hope|think|have|would|will)\b|hope this|rewrit(?:e|ten) (?:the|this)|text-to-(?:video|image))",
    re.IGNORECASE,
)


def tidy(text: str, prompt: str, *, finished: bool) -> str:
    """Return the paragraph itself: without labels, quotes and markup, without sentences that repeat, contradict or speak.

    Where the model was stopped, the sentence that it was at is left out.
    """
    text = re.split(rf"\n\s*(?:{PROMPT}|{ENHANCED})", text)[0]
    text = " ".join(re.sub(r"^\s*(?:[-*#>]+|\d+[.)])\s+", "", line) for line in text.splitlines() if line.strip())
    text = _LABEL.sub("", text.replace("**", "").strip()).strip()
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”":
        text = text[1:-1].strip()
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(text)]
    if not finished and sentences and not _END.search(sentences[-1]):
        sentences.pop()
    return " ".join(_fitting(list(dict.fromkeys(sentences)), prompt))


def _fitting(sentences: list[str], prompt: str) -> Iterator[str]:
    """Yield the sentences that stay with the prompt. One that names hues has said which: those after the first add no others."""
    hues, speaks = HUES & set(words(prompt)), _VOICE.search(prompt)
    for index, sentence in enumerate(sentences):
        strange = index and hues and (HUES - hues) & set(words(sentence))
        if not strange and contradiction(sentence, prompt) is None and (speaks or not _VOICE.search(sentence)):
            yield sentence


def contradiction(text: str, prompt: str) -> str | None:
    """Return the word by which a text says the opposite of the prompt: another direction, or another colour of the same thing."""
    asked, said = ({found.removesuffix("ward") for found in stems(each)} for each in (prompt, text))
    for word in asked & OPPOSITES.keys():
        if OPPOSITES[word] in said - asked and word not in said:
            return OPPOSITES[word]
    wanted = coloured(prompt)
    for thing, colours in coloured(text).items():
        other = colours - wanted.get(thing, colours)
        if other:
            return f"{min(other)} {thing}"
    return None


def refuses(text: str, prompt: str) -> bool:
    """Whether the model says that it will not; a prompt that speaks so itself may be answered so."""
    return _REFUSAL.search(text) is not None and _REFUSAL.search(prompt) is None


def objection(text: str, prompt: str, instruction: Instruction) -> str | None:
    """Return what speaks against using ``text`` in place of ``prompt``, or None."""
    return next(chain(_faults(text, prompt), _shortcomings(text, prompt, instruction)), None)


def _faults(text: str, prompt: str) -> Iterator[str]:
    """Yield why this is no description at all."""
    if not words(text):
        yield "it is empty"
    if _NO_TEXT.search(text):
        yield "it holds characters of no text"
    if UNSPACED.search(text) and not UNSPACED.search(prompt):
        yield "it changes the script"
    if refuses(text, prompt):
        yield "it is a refusal"
    if _ADDRESS.search(text) and not _ADDRESS.search(prompt):
        yield "it talks about the task"


def _shortcomings(text: str, prompt: str, instruction: Instruction) -> Iterator[str]:
    """Yield why this description does not stand for the prompt."""
    if _plain(text) == _plain(prompt):
        yield "it is the prompt unchanged"
    if _echoes(text, prompt, instruction):
        yield "it repeats the instruction"
    if _repeats(text):
        yield "it repeats itself"
    lost = lost_words(text, prompt)
    if lost:
        yield f"it lost {', '.join(lost)}"
    asked, said = len(words(prompt)), len(words(text))
    if asked < LONG_PROMPT and said < asked + LEAST_ADDED:
        yield "it adds next to nothing"


def lost_words(text: str, prompt: str) -> list[str]:
    """Return the prompt's words that the text should have kept; empty where it kept enough."""
    there = stems(text)
    asked = content_words(prompt)
    lost = [word for word in asked if not _kept(word, there)]
    must = [word for word in lost if word in COLOURS or word in NUMBERS or word.isdigit() or _is_name(word, prompt)]
    if must:
        return must
    return lost if len(asked) - len(lost) < KEPT_SHARE * len(asked) else []


def token_limit(max_tokens: int) -> int:
    """Return how many of the enhancer's tokens surely fit ``max_tokens`` of the video model's."""
    return int(max_tokens * LIMIT_MARGIN)


def _kept(word: str, there: set[str]) -> bool:
    if stem(word) in there:
        return True
    parts = [part for part in word.split("-") if part]
    return len(parts) > 1 and all(stem(part) in there for part in parts)


def _is_name(word: str, prompt: str) -> bool:
    """Whether a word is written with a capital inside a sentence."""
    return re.search(rf"[a-z,;] {re.escape(word.capitalize())}\b", prompt) is not None


def _plain(text: str) -> str:
    return " ".join(words(text))


def _runs(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[shift:] for shift in range(_RUN)), strict=False))


def _echoes(text: str, prompt: str, instruction: Instruction) -> bool:
    """Whether much of the text is copied from the system text or its examples; what the prompt says itself does not count."""
    own = set(_runs(prompt))
    runs = [run for run in _runs(text) if run not in own]
    told = set(_runs(instruction.text))
    return bool(runs) and sum(run in told for run in runs) > ECHO_SHARE * len(runs)


def _repeats(text: str) -> bool:
    """Whether runs of words come again and again, or one word stands three times in a row."""
    found = words(text)
    if any(a == b == c for a, b, c in zip(found, found[1:], found[2:], strict=False)):
        return True
    runs = _runs(text)
    again = sum(count - 1 for count in Counter(runs).values())
    return bool(runs) and again > REPEATED_SHARE * len(runs)
