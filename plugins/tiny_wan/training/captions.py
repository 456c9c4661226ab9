"""Captions of scenes: from "red circle" to the long sentences that a prompt enhancer writes.

Whatever a caption leaves out, the scene drew at random, so the model learns to choose it by itself.
"""

# ruff: noqa: ANN001, ANN201, C901, D103, D401, FBT001, FBT002, PLR0912, PLR0915 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import re
from functools import partial

import numpy as np

from training.world import BACKGROUNDS, COLOURS, LAYOUTS, MOTIONS, SHAPES, SIZES, Scenes

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
COLOUR_WORDS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
}
BACKGROUND_WORDS = {
    "black": ("a black background", "black", "a plain black background", "a dark black backdrop"),
    "white": ("a white background", "white", "a plain white background", "a clean white backdrop"),
    "gray": ("a gray background", "gray", "a grey background", "a plain gray backdrop"),
    "striped": ("a striped background", "stripes", "vertical stripes", "a background of gray stripes"),
    "checkered": ("a checkered background", "a checkerboard", "a checkerboard background", "a checkered backdrop"),
    "dotted": ("a dotted background", "dots", "a polka dot background", "a background with dots"),
} | {
    name: tuple(f"{'an' if word[0] == 'o' else 'a'} {word} background" for word in said)
    + tuple(form.format(word) for word in said for form in ("{}", "a plain {} background", "a bright {} backdrop"))
    for name, said in COLOUR_WORDS.items()
}
# (a verb with an s, a verb with ing); the two are drawn together.
_GO = (("moves", "moving"), ("moves", "moving"), ("slides", "sliding"), ("glides", "gliding"), ("travels", "travelling"))
_GO += (("goes", "going"), ("drifts", "drifting"), ("flies", "flying"))
WAYS = {
    "right": ("right", "to the right", "to the right", "rightwards", "from left to right", "towards the right"),
    "left": ("left", "to the left", "to the left", "leftwards", "from right to left", "towards the left"),
    "up": ("up", "upwards", "upward", "to the top", "from bottom to top"),
    "down": ("down", "downwards", "downward", "to the bottom", "from top to bottom"),
    "up right": ("diagonally up and to the right", "up and to the right", "to the upper right", "diagonally up right"),
    "up left": ("diagonally up and to the left", "up and to the left", "to the upper left", "diagonally up left"),
    "down right": (
        "diagonally down and to the right", "down and to the right", "to the lower right", "diagonally down right",
    ),
    "down left": (
        "diagonally down and to the left", "down and to the left", "to the lower left", "diagonally down left",
    ),
}  # fmt: skip
STAYS = {
    "rotate": (("rotates", "rotating"), ("spins", "spinning"), ("turns around", "turning around"),
               ("rotates in place", "rotating in place")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("grows larger", "growing larger"),
             ("expands", "expanding")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("becomes smaller", "becoming smaller")),
    "still": (("stands still", "standing still"), ("stays still", "staying still"), ("does not move", "not moving"),
              ("rests motionless", "resting motionless"), ("stays in place", "staying in place")),
}  # fmt: skip
ADVERBS = ("smoothly", "slowly", "steadily", "gently", "quickly", "evenly")
OPENINGS = (
    "a video of", "an animation of", "a clip of", "a high quality video of", "a simple animation of", "a clean render of",
    "a short clip showing", "a video showing", "there is", "a picture of", "an image of", "a minimalist scene with",
    "a cinematic shot of",
)  # fmt: skip
FLUFF = (
    "the scene is clean and minimal", "flat colors with sharp edges", "soft even lighting", "the camera is static",
    "high quality, sharp focus", "smooth motion", "crisp geometric shapes", "bright saturated colors", "simple composition",
    "the movement is fluid and continuous", "the edges are crisp and well defined", "no other objects are visible",
    "the background remains unchanged", "minimalist design", "4k, highly detailed", "the lighting is uniform",
    "the object is clearly visible in the frame", "a calm and steady atmosphere", "vivid colours", "digital art",
    "captured in a single continuous shot", "the animation is smooth and consistent", "cinematic", "masterpiece",
)  # fmt: skip
# What a prompt calls a subject that it leaves to a picture. Here and in the asides words may be unknown to the tokenizer.
NAMELESS = ("it", "the object", "the object", "the shape", "the same object", "the object in the image")
# What language models add that sounds like the object's motion and is not; {way} is any direction, {motion} any motion.
ASIDES = (
    "the camera stays still", "the camera is static", "the camera moves slowly across the scene", "the camera moves {way}",
    "the camera follows the {shape}", "the camera follows it at an even speed", "the camera is {motion} around the {shape}",
    "the background stays still", "the background does not move", "the {background} background remains unchanged",
    "the light is soft and even", "a bright light shines from above", "the light moves across the frame", "it keeps its size",
    "the {shape} keeps its shape and size", "its shape and size stay the same", "in one straight line at an even speed",
    "the edges of the {shape} are crisp", "it keeps moving from one side to the other side of the frame", "the scene stays calm",
    "from the first frame to the last", "no other objects are visible", "the {colour} {shape} stays clear",
)  # fmt: skip
# A word no table knows: the tokenizer maps all such to its unknown token, which the model learns to overlook.
STRANGE = "qwxz"
CHATTER_SHARE = 0.25
_PLACES = {"side by side": ("on the left", "on the right"), "stacked": ("at the top", "at the bottom")}
_BETWEEN = {"side by side": ("next to", "to the left of", "beside"), "stacked": ("above", "over", "on top of")}


def vocabulary() -> list[str]:
    """Every word and mark that captions are made of, sorted."""
    texts = [*OPENINGS, *FLUFF, *ADVERBS, "a", "an", "and", "the", "while", "on", "in", "front", "of", "against", "with", "both"]
    texts += [w for table in (SHAPE_WORDS, SIZE_WORDS, COLOUR_WORDS, BACKGROUND_WORDS, WAYS) for ws in table.values() for w in ws]
    texts += [w for pairs in (_GO, *STAYS.values()) for pair in pairs for w in pair]
    texts += [w for table in (_PLACES, _BETWEEN) for ws in table.values() for w in ws]
    # Prompts of people say these, too; the model only learns that some words do not matter.
    texts += ["is it its there shows show showing one two object shape background color colour scene frame at to from"]
    texts += ["across over slowly by center centre middle left right top bottom bright dark light"]
    return sorted({word for text in texts for word in words(text)} | {".", ","})


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+|[.,]", text.lower())


_KNOWN = [word for word in vocabulary() if word.isalnum()]


def choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def caption(scenes: Scenes, row: int, rng: np.random.Generator, still_image: bool = False) -> str:
    """One phrasing of one scene, drawn from rng. A still image rarely tells a motion."""
    pick = partial(choice, rng)

    def chance(p: float) -> bool:
        return rng.random() < p

    layout = LAYOUTS[scenes.layout[row]]
    background = BACKGROUNDS[scenes.background[row]]
    tells_motion = chance(0.3 if still_image else 0.9)
    tells_size = chance(0.6)
    things, motions = [], []
    for k in range(1 if layout == "alone" else 2):
        size = list(SIZES)[scenes.size[row, k]]
        tell = tells_size and (size != "medium" or chance(0.5))
        adjectives = [pick(SIZE_WORDS[size])] if tell else []
        colour = pick(COLOUR_WORDS[list(COLOURS)[scenes.colour[row, k]]])
        things.append(" ".join([*adjectives, colour, pick(SHAPE_WORDS[SHAPES[scenes.shape[row, k]]])]))
        motions.append(MOTIONS[scenes.motion[row, k]])

    def a(thing: str) -> str:
        return ("an " if thing[0] in "aeiou" else "a ") + thing

    place = pick(BACKGROUND_WORDS[background])
    where = pick(("on", "on", "against", "in front of")) + " " + place
    if not place.startswith(("a ", "an ")):
        where = "on " + place
    tells_where = chance(0.75)

    if layout == "alone":
        thing, motion = things[0], motions[0]
        style = rng.random()
        if style < 0.22:  # terse
            parts = [a(thing) if chance(0.3) else thing]
            if tells_motion and chance(0.8):
                short = motion in WAYS and chance(0.2)
                parts.append(pick(WAYS[motion]) if short else moves(motion, True, rng))
            if tells_where and chance(0.6):
                parts.append(where)
            text = pick((" ", ", ")).join(parts)
        elif style < 0.62:  # plain
            said = "the " + thing if chance(0.1) else a(thing)
            told = moves(motion, True, rng) if chance(0.6) else says(motion, rng)
            parts = [said, *([told] if tells_motion else []), *([where] if tells_where else [])]
            text = " ".join(parts)
        elif style < 0.75:  # the ground first
            first = where + ", " if tells_where else ""
            text = first + a(thing) + (" " + moves(motion, chance(0.4), rng) if tells_motion else "")
        else:  # long
            text = f"{pick(OPENINGS)} {a(thing)}" + (f" {where}" if tells_where else "")
            noun = thing.split()[-1] if not thing.endswith("plus sign") else "plus sign"
            if tells_motion:
                text += pick((". the ", ", the ")) + f"{noun if chance(0.6) else thing} {says(motion, rng)}"
            for _ in range(int(rng.integers(0, 4))):
                text += pick((". ", ", ")) + pick(FLUFF)
    else:
        same = tells_motion and motions[0] == motions[1]
        said = [
            a(thing) + (" " + moves(motion, True, rng) if tells_motion and not same else "")
            for thing, motion in zip(things, motions, strict=True)
        ]
        style = rng.random()
        if style < 0.45:
            said = [f"{text} {spot}" for text, spot in zip(said, _PLACES[layout], strict=True)]
            text = " and ".join(said)
        elif style < 0.8 and not (tells_motion and not same):
            text = f"{said[0]} {pick(_BETWEEN[layout])} {said[1]}"
        else:
            text = pick((" and ", ", ")).join(said)
        if same:
            text += ", both " + moves(motions[0], True, rng) if chance(0.5) else " " + moves(motions[0], True, rng)
        if tells_where:
            text = f"{text} {where}" if chance(0.8) else f"{where}, {text}"
        if chance(0.15):
            text = f"{pick(OPENINGS)} {text}"
        if chance(0.2):
            text += pick((". ", ", ")) + pick(FLUFF)

    noun = pick(SHAPE_WORDS[SHAPES[scenes.shape[row, 0]]])
    return embroidered(text, rng, list(COLOURS)[scenes.colour[row, 0]], noun, background)


def bare_caption(scenes: Scenes, row: int, rng: np.random.Generator) -> str:
    """A phrasing that says what happens and not to what: for prompts that leave the subject to a picture."""
    pick = partial(choice, rng)
    layout = LAYOUTS[scenes.layout[row]]
    motions = [MOTIONS[scenes.motion[row, k]] for k in range(1 if layout == "alone" else 2)]
    if len(set(motions)) > 1:
        text = " and ".join(f"the one {spot} {says(motion, rng)}" for spot, motion in zip(_PLACES[layout], motions, strict=True))
    elif rng.random() < 0.5:
        text = moves(motions[0], True, rng)
    elif len(motions) == 2:
        text = f"both {moves(motions[0], True, rng)}"
    else:
        who = pick(NAMELESS)
        text = f"{who} {says(motions[0], rng)}" if rng.random() < 0.7 else f"{who}, {moves(motions[0], True, rng)}"
    if rng.random() < 0.25:
        text += pick((". ", ", ")) + pick(FLUFF)
    return embroidered(text, rng)


def moves(motion: str, ing: bool, rng: np.random.Generator) -> str:
    """What an object does, as "moves to the right" or "moving to the right"."""
    pick = partial(choice, rng)

    if motion in STAYS:
        verb = pick(STAYS[motion])[ing]
        return verb + (" " + pick(ADVERBS) if motion != "still" and rng.random() < 0.12 else "")
    return " ".join([pick(_GO)[ing], *([pick(ADVERBS)] if rng.random() < 0.15 else []), pick(WAYS[motion])])


def says(motion: str, rng: np.random.Generator) -> str:
    """What an object does, as a sentence goes on from its subject: "moves to the right", "is moving to the right"."""
    return moves(motion, False, rng) if rng.random() < 0.5 else "is " + moves(motion, True, rng)


def embroidered(text: str, rng: np.random.Generator, colour: str = "", shape: str = "object", background: str = "") -> str:
    """A caption as people and language models send it: some with chatter, a full stop, words nobody knows."""
    if rng.random() < CHATTER_SHARE:
        chatter = chatter_of(rng, colour, shape, background)
        text = f"{chatter} {text}" if rng.random() < 0.05 else text + choice(rng, (". ", ". ", ", ", " and ")) + chatter
    elif rng.random() < 0.25:
        text += "."
    if rng.random() < 0.08:
        pieces = text.split()
        for _ in range(int(rng.integers(1, 6))):
            pieces.insert(int(rng.integers(len(pieces) + 1)), STRANGE)
        text = " ".join(pieces)
    return text


def chatter_of(rng: np.random.Generator, colour: str, shape: str, background: str) -> str:
    """Sentences that say nothing new of the scene, as language models add them.

    Half are about the camera, the light, or the subject's unchanging looks; the others hold words nobody knows, and known ones
    out of place.
    """
    sentences = []
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.5:
            way, motion = choice(rng, choice(rng, list(WAYS.values()))), moves(choice(rng, MOTIONS), True, rng)
            aside = choice(rng, ASIDES).format(way=way, motion=motion, colour=colour, shape=shape, background=background)
            sentences.append(" ".join(aside.split()))
            continue
        length = int(rng.integers(4, 15))
        known = rng.random(length) < rng.uniform(0.1, 0.7)
        chosen = rng.integers(len(_KNOWN), size=length)
        sentences.append(" ".join(_KNOWN[i] if k else STRANGE for k, i in zip(known, chosen, strict=True)))
    return ". ".join(sentences) + "."


def captions(scenes: Scenes, seed: int, still_image: bool = False) -> list[str]:
    """One caption a scene, deterministic in the seed."""
    rng = np.random.default_rng(seed)
    return [caption(scenes, row, rng, still_image) for row in range(len(scenes))]


def bare_captions(scenes: Scenes, seed: int) -> list[str]:
    """One caption a scene that names no subject, deterministic in the seed."""
    rng = np.random.default_rng(seed)
    return [bare_caption(scenes, row, rng) for row in range(len(scenes))]
