"""The world that tiny-wan knows: flat shapes that move over quiet backgrounds.

A batch of scenes is a struct of arrays drawn from one seed; `render` turns it into clips of any length and size on
any device. Lengths are fractions: a radius of the shorter side, a position of the room that an object has, time of the
whole clip. So one scene is the same event at 5 or 81 frames, square or wide.
"""

# ruff: noqa: ANN001, ANN202, D105, D401 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import zlib
from dataclasses import dataclass, fields

import numpy as np
import torch

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (248, 220, 40),
    "green": (40, 165, 65),
    "cyan": (50, 205, 215),
    "blue": (40, 80, 225),
    "purple": (135, 55, 195),
    "pink": (250, 125, 185),
}
SIZES = {"small": 0.125, "medium": 0.18, "large": 0.26}
_SIZE_SHARES = (0.44, 0.28, 0.28)  # small objects are the hardest
# Two gray levels each, a ground and a figure; then flat grounds of every colour, a little duller than the objects' own.
GRAY_BACKGROUNDS = {
    "black": (18, 18),
    "white": (236, 236),
    "gray": (128, 128),
    "striped": (70, 120),
    "checkered": (150, 205),
    "dotted": (40, 115),
}
BACKGROUNDS = (*GRAY_BACKGROUNDS, *COLOURS)
BACKGROUND_RGB = np.array(
    [[(level,) * 3 for level in levels] for levels in GRAY_BACKGROUNDS.values()]
    + [[[0.75 * part + 32 for part in rgb]] * 2 for rgb in COLOURS.values()]
)  # (background, ground and figure, 3) in 0..255
COLOURED_SHARE = 0.25
DIRECTIONS = {
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up right": (1, -1),
    "up left": (-1, -1),
    "down right": (1, 1),
    "down left": (-1, 1),
}
MOTIONS = (*DIRECTIONS, "rotate", "grow", "shrink", "still")
LAYOUTS = ("alone", "side by side", "stacked")
_MOTION_WEIGHTS = {
    "alone": (2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2),
    # Two objects stay in their halves of the picture.
    "side by side": (0, 0, 2, 2, 0, 0, 0, 0, 1, 1, 1, 2),
    "stacked": (2, 2, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2),
}
HELD_OUT_OF = 8


def held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this combination is kept out of training, for the judge: one in eight, by its CRC-32."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode()) % HELD_OUT_OF == 0


def _allowed_table() -> np.ndarray:
    """Booleans (colour, shape, motion): not held out, and visible (a circle's rotation is not)."""
    table = np.ones((len(COLOURS), len(SHAPES), len(MOTIONS)), dtype=bool)
    for c, colour in enumerate(COLOURS):
        for s, shape in enumerate(SHAPES):
            for m, motion in enumerate(MOTIONS):
                invisible = motion == "rotate" and shape in ("circle", "ring")
                table[c, s, m] = not invisible and not held_out(colour, shape, motion)
    return table


ALLOWED = _allowed_table()


@dataclass(frozen=True)
class Scenes:
    """N scenes of one or two objects; arrays start with N, and object arrays go on with 2."""

    layout: np.ndarray  # (N,) index into LAYOUTS; 0 has one object
    background: np.ndarray  # (N,) index into BACKGROUNDS
    shape: np.ndarray  # (N, 2) index into SHAPES, and so on
    colour: np.ndarray
    size: np.ndarray
    motion: np.ndarray
    radius: np.ndarray  # (N, 2) of the shorter side
    start: np.ndarray  # (N, 2, xy) of the room the object has
    end: np.ndarray  # (N, 2, xy)
    scale: np.ndarray  # (N, 2, start and end) times the radius
    turn: np.ndarray  # (N, 2) radians over the clip, clockwise
    object_rgb: np.ndarray  # (N, 2, 3) in 0..1
    background_rgb: np.ndarray  # (N, ground and figure, 3) in 0..1
    phase: np.ndarray  # (N, xy) offset of the pattern in pixels

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, rows) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def sample_backgrounds(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a background (N,) for objects of these colours (N, 2): never one of their own colour, which would hide them."""
    grays = len(GRAY_BACKGROUNDS)
    background = rng.integers(0, grays, len(colour))
    coloured = rng.random(len(colour)) < COLOURED_SHARE
    while coloured.any():
        background[coloured] = grays + rng.integers(0, len(COLOURS), int(coloured.sum()))
        coloured &= (background[:, None] - grays == colour).any(1)
    return background


def sample_scenes(n: int, seed: int | np.random.SeedSequence, two: float = 0.2, wild: float = 0.0) -> Scenes:
    """Draw n scenes; a share `two` has two objects.

    A share `wild` gets any colours and shifted patterns: an autoencoder should also cope with pictures of strangers.
    """
    rng = np.random.default_rng(seed)
    layout = np.where(rng.random(n) < two, rng.integers(1, 3, n), 0)
    shape = np.zeros((n, 2), dtype=np.int64)
    colour, motion = np.zeros_like(shape), np.zeros_like(shape)
    weights = np.array([_MOTION_WEIGHTS[name] for name in LAYOUTS], dtype=np.float64)
    cumulative = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)
    todo = np.ones((n, 2), dtype=bool)
    while todo.any():
        k = int(todo.sum())
        rows = np.nonzero(todo)[0]
        shape[todo] = rng.integers(0, len(SHAPES), k)
        colour[todo] = rng.integers(0, len(COLOURS), k)
        draws = rng.random(k)[:, None]
        motion[todo] = np.minimum((draws >= cumulative[layout[rows]]).sum(1), len(MOTIONS) - 1)
        todo = ~ALLOWED[colour, shape, motion]
        same = (colour[:, 0] == colour[:, 1]) & (shape[:, 0] == shape[:, 1])
        todo[:, 1] |= same

    size = rng.choice(len(SIZES), (n, 2), p=_SIZE_SHARES)
    size = np.where((layout > 0)[:, None], np.minimum(size, 1), size)
    radius = np.array(list(SIZES.values()))[size] * rng.uniform(0.93, 1.07, (n, 2))

    step = np.array([*DIRECTIONS.values(), (0, 0), (0, 0), (0, 0), (0, 0)])[motion]
    travel = rng.uniform(0.65, 1.0, (n, 2, 1)) * np.abs(step)
    low = rng.random((n, 2, 2)) * (1 - travel)
    start = np.where(step < 0, low + travel, low)
    end = start + step * travel

    scale = np.ones((n, 2, 2))
    scale[motion == MOTIONS.index("grow")] = (0.5, 1.15)
    scale[motion == MOTIONS.index("shrink")] = (1.15, 0.5)
    turn = np.where(motion == MOTIONS.index("rotate"), rng.uniform(0.6, 1.0, (n, 2)) * np.pi, 0.0)

    background = sample_backgrounds(colour, rng)
    object_rgb = np.array(list(COLOURS.values()))[colour] / 255
    background_rgb = BACKGROUND_RGB[background] / 255
    phase = np.zeros((n, 2))
    strange = rng.random(n) < wild
    object_rgb = np.where(strange[:, None, None], rng.random((n, 2, 3)), object_rgb)
    background_rgb = np.where(strange[:, None, None], rng.random((n, 2, 3)), background_rgb)
    phase = np.where(strange[:, None], rng.uniform(0, 32, (n, 2)), phase)
    return Scenes(
        layout, background, shape, colour, size, motion, radius, start, end, scale, turn, object_rgb, background_rgb, phase
    )


def tensors(scenes: Scenes, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The scenes' arrays that `draw` needs, on the device."""
    names = ("layout", "background", "shape", "radius", "start", "end", "scale", "turn", "object_rgb", "background_rgb", "phase")
    out = {}
    for name in names:
        array = getattr(scenes, name)
        dtype = torch.int64 if array.dtype.kind == "i" else torch.float32
        out[name] = torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype, non_blocking=True)
    return out


def render(scenes: Scenes, frames: int, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Clips (N, 3, frames, height, width) in -1..1, float32. A single frame shows the middle of the event."""
    return draw(tensors(scenes, device), frames, height, width)


def covered(scenes: Scenes, frames: int, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """How much of each pixel objects cover in what `render` draws, (N, 1, frames, height, width) in 0..1."""
    s = tensors(scenes, device)
    return torch.maximum(*(_cover(s, k, *_grid(frames, height, width, device)) for k in range(2)))[:, None]


def draw(s: dict[str, torch.Tensor], frames: int, height: int, width: int) -> torch.Tensor:
    """`render` on tensors: pointwise from the pixel grid to the picture, so that a compiler can fuse it."""
    time, xs, ys = _grid(frames, height, width, s["radius"].device)
    figure = _pattern(s["background"], s["phase"], xs, ys)[:, None]
    ground, pattern = s["background_rgb"].view(-1, 2, 3, 1, 1, 1).unbind(1)
    picture = ground + (pattern - ground) * figure

    for k in range(2):
        cover = _cover(s, k, time, xs, ys)[:, None]
        picture = picture + (s["object_rgb"][:, k].view(-1, 3, 1, 1, 1) - picture) * cover
    return picture * 2 - 1


def _grid(frames: int, height: int, width: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Time (1, frames, 1, 1) in 0..1, and the pixels' centres (1, 1, 1, width) and (1, 1, height, 1)."""
    ys = torch.arange(height, device=device).view(1, 1, height, 1) + 0.5
    xs = torch.arange(width, device=device).view(1, 1, 1, width) + 0.5
    time = torch.linspace(0, 1, frames, device=device) if frames > 1 else torch.full((1,), 0.5, device=device)
    return time.view(1, frames, 1, 1), xs, ys


def _pattern(background: torch.Tensor, phase: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
    """How much of the figure level shows, (N, 1, height, width). Periods are 32 pixels, at any picture size."""
    xs, ys = xs + phase[:, 0].view(-1, 1, 1, 1), ys + phase[:, 1].view(-1, 1, 1, 1)
    right, low = (xs / 16).floor() % 2, (ys / 16).floor() % 2
    dots = (4.5 - ((xs % 16 - 8) ** 2 + (ys % 16 - 8) ** 2).sqrt()).clamp(0, 1)
    kind = background.view(-1, 1, 1, 1)
    out = torch.where(kind == BACKGROUNDS.index("striped"), right, torch.zeros_like(right))
    out = torch.where(kind == BACKGROUNDS.index("checkered"), (right - low).abs(), out)
    return torch.where(kind == BACKGROUNDS.index("dotted"), dots, out)


def _cover(s, k: int, time, xs, ys) -> torch.Tensor:
    """How much of each pixel object k covers, (N, frames, height, width)."""
    height, width = ys.shape[2], xs.shape[3]
    side = min(height, width)
    radius = s["radius"][:, k].view(-1, 1, 1, 1) * side
    scale = s["scale"][:, k].view(-1, 2, 1, 1, 1)
    layout = s["layout"].view(-1, 1, 1, 1)
    # The room of an object: the picture, or its half of it, less its own extent at its largest.
    extent = radius * 1.1 * scale.amax(1)
    x_low, x_high = _half(layout == 1, k, width)
    y_low, y_high = _half(layout == 2, k, height)
    start, end = (s[name][:, k].view(-1, 2, 1, 1, 1) for name in ("start", "end"))
    where = start + (end - start) * time[:, None]
    cx = _place(where[:, 0], x_low, x_high, extent)
    cy = _place(where[:, 1], y_low, y_high, extent)

    size = radius * (scale[:, 0] + (scale[:, 1] - scale[:, 0]) * time)
    angle = s["turn"][:, k].view(-1, 1, 1, 1) * time
    dx, dy = (xs - cx) / size, (ys - cy) / size
    x = dx * angle.cos() + dy * angle.sin()
    y = -dx * angle.sin() + dy * angle.cos()
    present = (s["layout"] > 0).view(-1, 1, 1, 1).float() if k == 1 else 1.0
    return present * (0.5 - _distance(s["shape"][:, k].view(-1, 1, 1, 1), x, y) * size).clamp(0, 1)


def _half(halved: torch.Tensor, k: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.where(halved, k * length / 2, 0.0)
    return low, torch.where(halved, low + length / 2, float(length))


def _place(where, low, high, extent):
    room = (high - low - 2 * extent).clamp_min(0)
    return torch.where(room > 0, low + extent + where * room, (low + high) / 2)


def _distance(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance to the outline of a shape of radius 1 (positive outside, y downwards)."""
    length = (x * x + y * y).sqrt()
    ax, ay = x.abs(), y.abs()
    square = torch.maximum(ax, ay) - 0.82
    triangle = torch.maximum(y, 0.8660254 * ax - 0.5 * y) - 0.55
    cross = torch.minimum(torch.maximum(ax - 1.0, ay - 0.34), torch.maximum(ax - 0.34, ay - 1.0))
    ring = (length - 0.8).abs() - 0.24
    out = torch.where(shape == 0, length - 1, square)
    out = torch.where(shape == 2, triangle, out)
    out = torch.where(shape == 3, _star(x, y), out)
    out = torch.where(shape == 4, cross, out)
    return torch.where(shape == 5, ring, out)


def _star(x: torch.Tensor, y: torch.Tensor, outer: float = 1.1, inner: float = 0.45) -> torch.Tensor:
    """A five-pointed star, tip up: folded into one tenth by Inigo Quilez's construction (2D distance functions)."""
    kx, ky = 0.809016994, 0.587785252
    x, y = x.abs(), -y
    fold = 2 * (kx * x - ky * y).clamp_min(0)
    x, y = x - fold * kx, y + fold * ky
    fold = 2 * (-kx * x - ky * y).clamp_min(0)
    x, y = x + fold * kx, y + fold * ky
    x, y = x.abs(), y - outer
    bx, by = inner * ky, inner * kx - 1
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, outer)
    return ((x - bx * h) ** 2 + (y - by * h) ** 2).sqrt() * torch.sign(y * bx - x * by)
