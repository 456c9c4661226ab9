"""Is what the model wrote an enhancement? ``additions`` takes off what does not fit, ``objection`` judges the rest.

Every rule here turns away texts that a small model really wrote. A rule that is in doubt rejects: the prompt of the job is
always there to fall back on.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from wan_host_qwen_enhance.instruction import ENHANCED, PROMPT, Instruction
from wan_host_qwen_enhance.words import (
    COLOURS,
    FILM,
    METALS,
    MOVE,
    NUMBERS,
    STILL,
    UNSPACED,
    coloured,
    content_words,
    motions,
    sentences,
    stem,
    stems,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_ADDED = 5
"""So many new words that say something at least, else the prompt may as well stay as it is."""
ECHO_SHARE = 0.3
REPEATED_SHARE = 0.2
LIMIT_MARGIN = 0.8
"""Tokens are counted with the enhancer's tokenizer, the limit is that of the video model's own: this is the room between them."""
_RUN = 4
_MOSTLY = 0.5
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")
_NEXT = re.compile(rf"(?:^|\n)\s*{PROMPT}|\n\s*{ENHANCED}")
"""Where a model goes on with a prompt of its own, as the examples do."""
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
_ENGLISH = re.compile(r"\b(?:the|an|and|of|with|from|its?|is|are|this|that|there|they|their|you|your)\b", re.IGNORECASE)
"""The rules marked as English are words of other languages as well: ``no`` is Portuguese for "in the"."""
_SPEECH = re.compile(r"[\"“”]")
_VOICE = re.compile(r"\b(?:I|[Mm]e|[Mm]y|[Yy]ou|[Yy]ours?|[Yy]ourself)\b")
"""English. Stories told by or to somebody: a small model drifts into them, and into speech, after a few sentences."""
_ABSENT = re.compile(r"\b(?:not?|never|none|nothing|nobody|neither|without|cannot|invisible)\b|n['’]t\b", re.IGNORECASE)  # noqa: RUF001  # as it is written
"""English. A video model reads words, not denials: ``no other dogs`` gives dogs."""
_COMPARED = re.compile(r"\b(?:as (?:if|though)|(?:looks?|seems?|feels?) like|like an?|resembl\w+|reminds?)\b", re.IGNORECASE)
"""English. What something is compared with is drawn as well."""
_CHANGING = frozenset(map(stem, ("appear", "disappear", "vanish", "emerge", "become", "transform", "change", "morph", "now")))
"""In a clip of a few seconds everything is there from the first frame to the last, unless the prompt says otherwise."""
_THERE = re.compile(r"\bthere(?:['’]s| is| are)\b", re.IGNORECASE)  # noqa: RUF001  # as it is written
"""Who says that something is there brings it in."""
_SIZE_KEPT = re.compile(r"\b(?:keeps?|stays?|remains?|same|unchanged|constant)\b", re.IGNORECASE)
_ADDRESS = re.compile(
    r"\b(?:this (?:prompt|instruction|paragraph|rewrit\w+)|the (?:prompt|instruction)s? (?:is|are|asks?|says?)|let me know"
    r"|i (?:hope|think|have|would|will)\b|hope this|rewrit(?:e|ten) (?:the|this)|text-to-(?:video|image))",
    re.IGNORECASE,
)


def additions(text: str, prompt: str, instruction: Instruction, *, finished: bool) -> str:
    """Return what a text adds to the prompt: without labels, quotes and markup, and only the sentences that fit, each once.

    Where the model was stopped, the sentence that it was at is left out.
    """
    kept: dict[tuple[str, ...], str] = {}
    for sentence in sentences(_paragraph(text), finished=finished):
        if misfit(sentence, prompt, instruction) is None:
            kept.setdefault(tuple(words(sentence)), sentence)
    return " ".join(kept.values())


def emptiness(text: str, prompt: str, instruction: Instruction, *, finished: bool) -> str:
    """Return why a text adds nothing."""
    first = next(iter(sentences(_paragraph(text), finished=finished)), None)
    if first is None:
        return "it has no whole sentence for this prompt" if words(text) else "it is empty"
    return f"none of its sentences fits (the first one: {misfit(first, prompt, instruction)})"


def _paragraph(text: str) -> str:
    """Return the text without what surrounds it and what comes after it."""
    text = _NEXT.split(text)[0]
    text = " ".join(re.sub(r"^\s*(?:[-*#>]+|\d+[.)])\s+", "", line) for line in text.splitlines() if line.strip())
    text = _LABEL.sub("", text.replace("**", "").strip()).strip()
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”":
        text = text[1:-1].strip()
    return text


def misfit(sentence: str, prompt: str, instruction: Instruction) -> str | None:
    """Return why a sentence must not stand after the prompt, or None."""
    if f" {' '.join(words(sentence))} " in f" {' '.join(words(prompt))} ":
        return "what the prompt says"
    return next(chain(_contradictions(sentence, prompt), _strangers(sentence, prompt, instruction)), None)


def _contradictions(sentence: str, prompt: str) -> Iterator[str]:
    """Yield where a sentence says something else than the prompt: another motion or direction, or another colour of a thing."""
    asked, said = motions(prompt), motions(sentence)
    if asked - {MOVE}:
        yield from (f"the motion {way}" for way in sorted(said - asked - {STILL, MOVE}))
    if asked == {STILL} and MOVE in said:
        yield "that it moves"
    if asked - {STILL} and STILL in said - asked:
        yield "that it is still"  # of the camera or the background as well: the subject is what a video model takes it for
    if asked & {"grow", "shrink"} and "siz" in stems(sentence) and _SIZE_KEPT.search(sentence):
        yield "that the size stays"
    wanted = coloured(prompt)
    if wanted:  # who names colours has said which things have one
        wanted = {thing: set[str]() for thing in stems(prompt)} | wanted
    for thing, colours in coloured(sentence).items():
        for colour in sorted(colours - wanted.get(thing, colours)):
            yield f"the {colour} {thing}"


def _strangers(sentence: str, prompt: str, instruction: Instruction) -> Iterator[str]:
    """Yield what a sentence brings in that the prompt did not ask for: colours beside its own, numbers, changes."""
    named, there = set(words(prompt)), set(words(sentence))
    if named & COLOURS:  # who names colours has said which
        yield from (f"the colour {word}" for word in sorted((there & COLOURS) - METALS - named))
    yield from (f"the number {word}" for word in sorted(there - named) if word in NUMBERS or word.isdigit())
    english = _ENGLISH.search(f"{prompt} {sentence}") is not None
    for voice in (_SPEECH, _VOICE) if english else (_SPEECH,):
        if voice.search(sentence) and not voice.search(prompt):
            yield "a voice"
    if stems(sentence) & _CHANGING - stems(prompt):
        yield "a change"
    if english and _ABSENT.search(sentence):
        yield "what is absent"
    if english and _COMPARED.search(sentence):
        yield "a comparison"
    if _THERE.search(sentence) and not _THERE.search(prompt):
        yield "something new"
    pairs = _pairs(sentence) - _pairs(prompt)
    if any(pairs & _pairs(short) for short, _ in instruction.examples):
        yield "an example's subject"
    if _copied(sentence, prompt, instruction) > _MOSTLY:
        yield "a copy of the instruction"


def refuses(text: str, prompt: str) -> bool:
    """Whether the model says that it will not; a prompt that speaks so itself may be answered so."""
    return _REFUSAL.search(text) is not None and _REFUSAL.search(prompt) is None


def objection(text: str, prompt: str, instruction: Instruction) -> str | None:
    """Return what speaks against writing ``text`` after ``prompt``, or None."""
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
    """Yield why this adds nothing to the prompt."""
    if _copied(text, prompt, instruction) > ECHO_SHARE:
        yield "it repeats the instruction"
    if _repeats(f"{prompt}. {text}"):
        yield "it repeats itself"
    if len({stem(word) for word in content_words(text)} - stems(prompt)) < LEAST_ADDED:
        yield "it adds next to nothing"


def token_limit(max_tokens: int) -> int:
    """Return how many of the enhancer's tokens surely fit ``max_tokens`` of the video model's."""
    return int(max_tokens * LIMIT_MARGIN)


def _runs(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[shift:] for shift in range(_RUN)), strict=False))


def _pairs(text: str) -> set[tuple[str, str]]:
    """Return the neighbouring words that both carry meaning: ``a white square``."""
    meant = set(content_words(text))
    return {pair for pair in pairwise(words(text)) if meant.issuperset(pair)}


def _copied(text: str, prompt: str, instruction: Instruction) -> float:
    """Return how much of the text, from 0 to 1, is copied from the system text or its examples.

    What the prompt says itself does not count, nor how things are filmed: ``the camera is static`` fits many prompts.
    """
    known, own = FILM | stems(prompt), set(_runs(prompt))
    runs = [run for run in _runs(text) if run not in own]
    told = {run for run in _runs(instruction.text) if any(stem(word) not in known for word in content_words(" ".join(run)))}
    return sum(run in told for run in runs) / len(runs) if runs else 0


def _repeats(text: str) -> bool:
    """Whether runs of words come again and again, or one word stands three times in a row."""
    found = words(text)
    if any(a == b == c for a, b, c in zip(found, found[1:], found[2:], strict=False)):
        return True
    runs = _runs(text)
    again = sum(count - 1 for count in Counter(runs).values())
    return bool(runs) and again > REPEATED_SHARE * len(runs)
