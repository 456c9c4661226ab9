"""Words of a text: their stems, their colours, and the motions that they name. Made for English, fair to the rest."""

from __future__ import annotations

import re


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


METALS = _listed("gold golden silver")
"""Colours of light and of things as well: they may come with any prompt."""
COLOURS = METALS | _listed("red orange yellow green cyan turquoise blue purple violet pink black white gray brown beige")
NUMBERS = _listed("two three four five six seven eight nine ten eleven twelve dozen hundred thousand")
_EMPTY = _listed(
    """a an the this that these those some any each every its it his her their my your our and or but nor with without within
    while as is are was were be been being has have had does do did of on in at to from into onto over under above below by
    for near next beside behind between through across around along against toward towards off out about then there here
    very so such who which what when where how can will would should may might must one not no also just than too video clip
    image picture photo photograph animation footage scene shot please make create generate show shows showing"""
)
_ENDINGS = ("ingly", "ing", "ely", "ed", "es", "ly", "e", "s", "y")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
HAN_AND_KANA = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
UNSPACED = re.compile(rf"{HAN_AND_KANA.pattern}|[\uac00-\ud7af\u0e00-\u0e7f]")
"""Scripts that put no spaces between words: there every character counts as one."""
_LEAST_STEM = 3
STOPS = ".!?\u2026\u3002\uff01\uff1f\u0964\u061f"
"""What ends a sentence, the full stop first: of Latin, Chinese and Japanese, Hindi, and Arabic."""
CLOSINGS = "\"'\u201d\u2019)"
_END = rf"(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)\.(?!\d)|[{STOPS[1:]}])[{STOPS}]*[{CLOSINGS}]*"
_SENTENCE = re.compile(rf".+?(?:{_END}|$)", re.DOTALL)
_WHOLE = re.compile(rf"{_END}$")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        found += UNSPACED.findall(word) if UNSPACED.search(word) else [word]
    return ["gray" if word == "grey" else word for word in found]


def sentences(text: str, *, finished: bool) -> list[str]:
    """Return the sentences of a text, each with a capital; the last one must have an end where the text was cut off."""
    found = [sentence.strip(" ,;:") for sentence in _SENTENCE.findall(text)]
    if not finished and found and not _WHOLE.search(found[-1]):
        found.pop()
    return [capitalised(sentence) for sentence in found if words(sentence)]


def capitalised(text: str) -> str:
    """Return a text with a capital, unless its first word has one somewhere: ``iPhone``."""
    return text[0].upper() + text[1:] if text.split(maxsplit=1)[0].islower() else text


def content_words(text: str) -> list[str]:
    """Return the words that carry meaning, each once, in their order."""
    return list(dict.fromkeys(word for word in words(text) if word not in _EMPTY))


def stem(word: str) -> str:
    """Return what the forms of a word have in common: ``running``, ``runs`` and ``run`` have the same stem."""
    word = word.removesuffix("'s").removesuffix("\u2019s")
    if len(word) > _LEAST_STEM + 1 and word.endswith(("ies", "ied")):
        word = word[:-3] + "y"
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > _LEAST_STEM and word[-1] == word[-2] else word


def stems(text: str) -> set[str]:
    """Return the stems of all words of a text."""
    return {stem(word) for word in words(text)}


FILM = frozenset(
    stem(word)
    for word in _listed(
        """camera frame shot motion movement move smooth smoothly continuous steady steadily slow slowly even evenly same speed
        pace first last static pan tilt follow track tracking background pattern shape colour color edge crisp soft sharp
        focus light stay keep all way straight line"""
    )
)
"""Stems of words that say how something is filmed and name nothing in the picture."""

STILL, MOVE = "still", "move"
_MOTIONS = {
    stem(word): motion
    for motion, forms in {
        "left": "left leftward",
        "right": "right rightward",
        "up": "up upward",
        "down": "down downward",
        "grow": "grow expand",
        "shrink": "shrink",
        "rotate": "rotate spin",
        STILL: "still motionless",
        MOVE: "move motion",
    }.items()
    for word in forms.split()
}
_FROM_TO = re.compile(r"\bfrom (?:the )?\w+ (to|towards?) ")


def motions(text: str) -> set[str]:
    """Return the directions and motions that a text names, each by one name; ``from left to right`` names the right alone."""
    return {_MOTIONS[found] for found in stems(_FROM_TO.sub(r"\1 ", text.lower())) if found in _MOTIONS}


_COLOUR = rf"\b(?:grey|{'|'.join(sorted(COLOURS))})\b"
_COLOURED = re.compile(rf"({_COLOUR}(?:(?:,|\s+and|\s+or|,\s*and|,\s*or)?\s+{_COLOUR})*)\s+({_WORD.pattern})")


def coloured(text: str) -> dict[str, set[str]]:
    """Return the colours that stand right before each word: ``a red and white circle`` gives ``{"circl": {"red", "white"}}``."""
    pairs: dict[str, set[str]] = {}
    for colours, thing in _COLOURED.findall(text.lower()):
        if thing not in COLOURS and thing not in _EMPTY:
            pairs.setdefault(stem(thing), set()).update(COLOURS.intersection(words(colours)))
    return pairs
