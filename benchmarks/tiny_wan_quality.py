"""Is what tiny-wan publishes right? A judge of files, by geometry.

    python benchmarks/tiny_wan_quality.py                      # the checkpoint that the plugin ships
    python benchmarks/tiny_wan_quality.py --model FOLDER --captions 40 --out quality/
    python benchmarks/tiny_wan_quality.py --preset fast --out fast/ --against .scratch/tiny_wan_quality/quality.json
    python benchmarks/tiny_wan_quality.py --device cuda:0 --preset fast    # with its 8-bit layers

A worker makes them as users have it: jobs go into its queue, and what it published is read back. The judge finds the
coloured object in each frame, names its colour by hue and its shape by overlap with drawn outlines, and follows its
centre and area. The captions' combinations of colour, shape and motion were held out of training (one in eight, by
CRC-32). It draws its own references, and shares no code with the clips that the model was trained on.

First it judges itself, on clips it draws (must be near 100 %) and on the same clips with captions shuffled (must be near
chance). `--skip-model` stops there.
"""

# ruff: noqa: ANN001, ANN002, ANN202, ANN204, ARG005, D102, D103, D105, D401, PLR2004, RUF007 - a script: its functions are named for what they measure
from __future__ import annotations

import argparse
import base64
import colorsys
import functools
import hashlib
import io
import json
import math
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw
from redis import Redis

from wan_host.queue import EmbeddedServer
from wan_host.testing.process import WorkerProcess
from wan_host.testing.receiver import Receiver

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = REPOSITORY / "plugins/tiny_wan/wan_host_tiny_wan/model"
SIDE, FRAMES, FPS = 128, 17, 16
DEFAULTS = {"steps": 12, "guidance": 3.0, "shift": 3.0, "preset": "exact"}

HUES = {"red": 0, "orange": 30, "yellow": 52, "green": 132, "cyan": 184, "blue": 227, "purple": 274, "pink": 331}
PAINT = {
    "red": (222, 38, 38), "orange": (245, 135, 25), "yellow": (248, 220, 40), "green": (40, 165, 65),
    "cyan": (50, 205, 215), "blue": (40, 80, 225), "purple": (135, 55, 195), "pink": (250, 125, 185),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SYMMETRY = {"circle": 360, "square": 4, "triangle": 3, "star": 5, "cross": 4, "ring": 360}
DIRECTIONS = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up right": (1, -1), "up left": (-1, -1), "down right": (1, 1), "down left": (-1, 1),
}  # fmt: skip
MOTIONS = (*DIRECTIONS, "rotate", "grow", "shrink", "still")
RADII = {"small": 0.125, "medium": 0.18, "large": 0.26}
GRAY_BACKGROUNDS = ("black", "white", "gray", "striped", "checkered", "dotted")
SAID = {
    "right": "moving to the right", "left": "moving to the left", "up": "moving up", "down": "moving down",
    "up right": "moving diagonally up and to the right", "up left": "moving diagonally up and to the left",
    "down right": "moving diagonally down and to the right", "down left": "moving diagonally down and to the left",
    "rotate": "rotating", "grow": "growing", "shrink": "shrinking", "still": "standing still",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a caption asks for."""

    colour: str
    shape: str
    motion: str
    size: str
    background: str
    seed: int

    @property
    def prompt(self) -> str:
        article = "an" if self.colour == "orange" else "a"
        size = "" if self.size == "medium" else f"{self.size} "
        article = "a" if size else article
        thing = f"{article} {size}{self.colour} {self.shape}"
        place = f"on {'an' if self.background == 'orange' else 'a'} {self.background} background"
        return (
            f"{thing} {SAID[self.motion]} {place}",
            f"{place}, {thing} {SAID[self.motion]}",
            f"a video of {thing} {place}. the {self.shape} is {SAID[self.motion]}. smooth motion, high quality",
            f"{size}{self.colour} {self.shape}, {SAID[self.motion]}, {place}",
        )[self.seed % 4]


def held_out(colour: str, shape: str, motion: str) -> bool:
    """The published rule by which combinations were kept out of training."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode()) % 8 == 0


def cases(count: int, *, coloured: bool = False) -> list[Case]:
    """The first ``count`` cases, on gray and patterned backgrounds or on those of another colour than the object's."""
    combinations = [
        (c, s, m)
        for c in PAINT for s in SHAPES for m in MOTIONS
        if held_out(c, s, m) and not (m == "rotate" and s in ("circle", "ring"))
    ]  # fmt: skip
    rng = random.Random(7)
    rng.shuffle(combinations)
    found = []
    for i in range(count):
        colour, shape, motion = combinations[i % len(combinations)]
        grounds = [name for name in PAINT if name != colour] if coloured else GRAY_BACKGROUNDS
        found.append(Case(colour, shape, motion, rng.choice(list(RADII)), rng.choice(grounds), 1000 + i))
    return found


# What the judge draws itself: references, sources, and the control of its own verdicts.


def outline(shape: str, cx: float, cy: float, radius: float, turn: float) -> list[list[tuple[float, float]]]:
    """Polygons in pixels, y downwards; those after the first are holes. turn: degrees, clockwise."""

    def polygon(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        return [(cx + radius * (x * c - y * s), cy + radius * (x * s + y * c)) for x, y in points]

    def ngon(n: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
        around = ((-90 + 360 * k / n, radii[k % len(radii)]) for k in range(n))
        return polygon([(r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for a, r in around])

    if shape == "circle":
        return [ngon(72, (1.0,))]
    if shape == "ring":
        return [ngon(72, (1.04,)), ngon(72, (0.56,))]
    if shape == "square":
        return [polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])]
    if shape == "triangle":
        return [ngon(3, (1.1,))]
    if shape == "star":
        return [ngon(10, (1.1, 0.495))]
    a, b = 0.34, 1.0
    plus = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return [polygon(plus)]


def paint(case: Case, at: float, side: int = SIDE) -> Image.Image:
    """One frame of what the case asks for, at a moment from 0 to 1, four times supersampled."""
    big = 4
    image = Image.new("RGB", (side * big, side * big), _ground(case.background))
    draw = ImageDraw.Draw(image)
    for x in range(0, side, 16):
        for y in range(0, side, 16):
            box = (x * big, y * big, (x + 16) * big - 1, (y + 16) * big - 1)
            odd_x, odd_y = (x // 16) % 2, (y // 16) % 2
            if (case.background == "striped" and odd_x) or (case.background == "checkered" and odd_x != odd_y):
                draw.rectangle(box, fill=(120,) * 3 if case.background == "striped" else (205,) * 3)
            if case.background == "dotted":
                draw.ellipse([(v + 8 + d) * big for d in (-4, 4) for v in (x, y)], fill=(115,) * 3)
    rng = random.Random(case.seed)
    radius = RADII[case.size]
    dx, dy = DIRECTIONS.get(case.motion, (0, 0))
    room = 0.5 - radius * 1.12
    across = [rng.uniform(-room, room) for _ in "xy"]
    x, y = ((d * room * (2 * at - 1) * 0.9 if d else free) for d, free in zip((dx, dy), across, strict=True))
    scale = {"grow": 0.5 + 0.65 * at, "shrink": 1.15 - 0.65 * at}.get(case.motion, 1.0)
    turn = 130 * at if case.motion == "rotate" else 0.0
    shape = outline(case.shape, (0.5 + x) * side * big, (0.5 + y) * side * big, radius * scale * side * big, turn)
    mask = Image.new("1", image.size)
    for k, points in enumerate(shape):
        ImageDraw.Draw(mask).polygon(points, fill=int(k == 0))
    image.paste(PAINT[case.colour], mask=mask)
    return image.resize((side, side), Image.Resampling.BOX)


def _ground(background: str) -> tuple[int, int, int]:
    if background in PAINT:
        red, green, blue = (round(0.8 * part + 20) for part in PAINT[background])
        return red, green, blue
    return ({"black": 18, "white": 236, "gray": 128, "striped": 70, "checkered": 150, "dotted": 40}[background],) * 3


# Files.


def write_video(path: Path, frames: np.ndarray) -> Path:
    """Frames (n, height, width, 3) uint8, as H.264 in yuv420p, nearly lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=FPS, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=8,
        output_params=["-crf", "12", "-preset", "medium", "-threads", "1", "-fflags", "+bitexact", "-flags", "+bitexact"],
    )  # fmt: skip
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def read_frames(path: Path) -> np.ndarray:
    """The frames of a published mp4 or png, (n, height, width, 3) uint8."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path).convert("RGB"))[None]
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


# Verdicts.


@dataclass(frozen=True)
class Seen:
    """The one coloured object of a frame."""

    colour: str
    shape: str
    centre: tuple[float, float]  # x, y in fractions of the frame
    area: float  # fraction of the frame
    ground: str | None  # the colour of a flat coloured background
    turn: float  # degrees, modulo the shape's symmetry


def colour_of(rgb: np.ndarray) -> str:
    hue = 360 * colorsys.rgb_to_hsv(*(rgb / 255))[0]
    return min(HUES, key=lambda name: min(abs(hue - HUES[name]), 360 - abs(hue - HUES[name])))


def largest_object(coloured: np.ndarray) -> np.ndarray | None:
    """The largest 8-connected part, or None if there is none or if it is not clearly the only one."""
    height, width = coloured.shape
    left = coloured.copy()
    parts: list[list[tuple[int, int]]] = []
    for y, x in np.argwhere(coloured):
        if not left[y, x]:
            continue
        left[y, x] = False
        part, stack = [], [(int(y), int(x))]
        while stack:
            py, px = stack.pop()
            part.append((py, px))
            for ny in range(max(py - 1, 0), min(py + 2, height)):
                for nx in range(max(px - 1, 0), min(px + 2, width)):
                    if left[ny, nx]:
                        left[ny, nx] = False
                        stack.append((ny, nx))
        parts.append(part)
    if not parts:
        return None
    part = max(parts, key=len)
    if len(part) < 0.004 * coloured.size or len(part) < 0.75 * coloured.sum():
        return None
    mask = np.zeros_like(coloured)
    mask[tuple(np.transpose(part))] = True
    return mask


GRID, UNIT = 56, 20  # a normalised mask has this many pixels a side, and this square root of its area


def normalise(soft: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """A mask moved to its centre of mass and scaled to one area; with that centre (x, y) and area, in pixels."""
    area = soft.sum()
    ys, xs = np.mgrid[: soft.shape[0], : soft.shape[1]]
    cx, cy = (xs * soft).sum() / area, (ys * soft).sum() / area
    step = math.sqrt(area) / UNIT
    grid = (np.arange(GRID) - (GRID - 1) / 2) * step
    sx, sy = np.meshgrid(cx + grid, cy + grid)
    x0, y0 = np.floor(sx).astype(int), np.floor(sy).astype(int)
    fx, fy = sx - x0, sy - y0
    padded = np.pad(soft, 1)

    def at(yy, xx):
        return padded[np.clip(yy + 1, 0, padded.shape[0] - 1), np.clip(xx + 1, 0, padded.shape[1] - 1)]

    top = at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx
    bottom = at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx
    return top * (1 - fy) + bottom * fy, (cx, cy), float(area)


@functools.cache
def templates() -> tuple[list[tuple[str, float]], np.ndarray]:
    """Normalised masks of every shape at every angle that looks different, six degrees apart."""
    names, masks = [], []
    for shape in SHAPES:
        period = 360 / SYMMETRY[shape]
        for turn in np.arange(0, max(period, 6), 6)[: max(1, round(period / 6))]:
            image = Image.new("L", (400, 400))
            for k, points in enumerate(outline(shape, 200, 200, 100, float(turn))):
                ImageDraw.Draw(image).polygon(points, fill=255 * (k == 0))
            names.append((shape, float(turn)))
            masks.append(normalise(np.asarray(image.resize((200, 200), Image.Resampling.BOX)) / 255.0)[0])
    return names, np.stack(masks)


def contrast(pixels: np.ndarray) -> tuple[np.ndarray, str | None]:
    """How much each pixel differs from the ground, 0 to 255: its colourfulness, or on a coloured ground its distance."""
    border = np.concatenate([pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3), pixels[:, :6].reshape(-1, 3)])
    ground = np.median(np.concatenate([border, pixels[:, -6:].reshape(-1, 3)]), axis=0)
    if np.ptp(ground) < 70:
        return np.ptp(pixels, axis=2), None
    return np.abs(pixels - ground).max(2), colour_of(ground)


def look(frame: np.ndarray) -> Seen | None:
    """The object of a frame (height, width, 3) uint8; None if there is not exactly one clear coloured object."""
    pixels = frame.astype(np.float64)
    chroma, ground = contrast(pixels)
    mask = largest_object(chroma > 55)
    if mask is None:
        return None
    inner = mask.copy()
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        inner &= np.roll(mask, shift, (0, 1))
    rgb = np.median(pixels[inner if inner.sum() > 8 else mask], axis=0)
    solid = np.median(chroma[inner if inner.sum() > 8 else mask])
    near = mask.copy()
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        near |= np.roll(mask, shift, (0, 1))
    normal, (cx, cy), area = normalise(np.clip(chroma / solid, 0, 1) * near)
    names, masks = templates()
    overlap = np.minimum(masks, normal).sum((1, 2)) / np.maximum(masks, normal).sum((1, 2))
    best = int(overlap.argmax())
    if overlap[best] < 0.6:
        return Seen(colour_of(rgb), "blob", (cx / frame.shape[1], cy / frame.shape[0]), area / chroma.size, ground, 0.0)
    shape, turn = names[best]
    return Seen(colour_of(rgb), shape, (cx / frame.shape[1], cy / frame.shape[0]), area / chroma.size, ground, turn)


def things_right(case: Case, seen: list[Seen | None]) -> dict[str, bool]:
    """Colour and shape, each in at least two of three frames: first, middle, last."""
    three = [seen[0], seen[len(seen) // 2], seen[-1]]
    colour = sum(s is not None and s.colour == case.colour for s in three) >= 2
    shape = sum(s is not None and s.shape == case.shape for s in three) >= 2
    background = sum(s is not None and s.ground == (case.background if case.background in PAINT else None) for s in three) >= 2
    return {"colour": colour, "shape": shape, "both": colour and shape, "background": background}


def motion_of(seen: list[Seen | None]) -> str:
    """What the object did from the first frame it is seen in to the last; "unclear" if it is seen in too few."""
    there = [s for s in seen if s is not None]
    if len(there) < max(3, 0.7 * len(seen)):
        return "unclear"
    first, last = there[0], there[-1]
    dx, dy = last.centre[0] - first.centre[0], last.centre[1] - first.centre[1]
    growth = last.area / first.area
    if math.hypot(dx, dy) >= 0.1:
        return max(
            DIRECTIONS, key=lambda name: (dx * DIRECTIONS[name][0] + dy * DIRECTIONS[name][1]) / math.hypot(*DIRECTIONS[name])
        )
    if growth > 1.5 or growth < 1 / 1.5:
        return "grow" if growth > 1 else "shrink"
    turned = 0.0
    for a, b in zip(there, there[1:], strict=False):
        period = 360 / SYMMETRY[b.shape] if b.shape == a.shape and b.shape in SYMMETRY else 0
        if period > 6:
            turned += (b.turn - a.turn + period / 2) % period - period / 2
    return "rotate" if abs(turned) > 30 else "still"


def judge(case: Case, frames: np.ndarray) -> dict:
    seen = [look(frame) for frame in frames]
    found = motion_of(seen)
    return {
        **things_right(case, seen),
        "motion": found == case.motion,
        "found": found,
        "seen": ["nothing" if s is None else f"{s.colour} {s.shape}" for s in (seen[0], seen[len(seen) // 2], seen[-1])],
        "prompt": case.prompt,
    }


def share(rows: list[dict], key: str, where: Callable[[int], bool] = lambda i: True) -> float:
    chosen = [row[key] for i, row in enumerate(rows) if where(i)]
    return sum(chosen) / len(chosen) if chosen else float("nan")


def tally(asked: list[Case], rows: list[dict]) -> dict[str, float]:
    moving = [case.motion in DIRECTIONS for case in asked]
    return {
        "colour and shape": share(rows, "both"),
        "colour": share(rows, "colour"),
        "shape": share(rows, "shape"),
        "background": share(rows, "background"),
        "direction": share(rows, "motion", lambda i: moving[i]),
        "other motions": share(rows, "motion", lambda i: not moving[i]),
    }


def paired(rows: list[dict], others: list[dict], frames: int = FRAMES) -> dict[str, dict[str, float]]:
    """What the same cases lost and gained against other rows; p: McNemar's exact test, two-sided. One frame has no motion."""
    found = {}
    for key in ("both", "colour", "shape", *(["motion"] if frames > 1 else [])):
        lost = sum(b[key] and not a[key] for a, b in zip(rows, others, strict=True))
        gained = sum(a[key] and not b[key] for a, b in zip(rows, others, strict=True))
        tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
        found[key] = {"lost": lost, "gained": gained, "p": min(1.0, 2 * tail)}
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, float(((a.astype(np.float64) - b) ** 2).mean())))


def control(asked: list[Case], out: Path) -> dict[str, dict[str, float]]:
    """The judge on clips it drew, with their own captions and with those of other clips."""
    clips = []
    for i, case in enumerate(asked):
        frames = np.stack([np.asarray(paint(case, t / (FRAMES - 1))) for t in range(FRAMES)])
        clips.append(read_frames(write_video(out / f"control-{i:03d}.mp4", frames)))
    shuffled = asked[len(asked) // 3 :] + asked[: len(asked) // 3]
    return {
        "drawn": tally(asked, [judge(case, clip) for case, clip in zip(asked, clips, strict=True)]),
        "shuffled": tally(shuffled, [judge(case, clip) for case, clip in zip(shuffled, clips, strict=True)]),
    }


# Generation: the one place that knows how files come to be.


class Generator:
    """A worker as users run it, from the queue to the published file, without pinning; use it with ``with``."""

    def __init__(self, model: Path, out: Path, threads: int, device: str = "cpu"):
        self.data = out / "worker"
        shutil.rmtree(self.data, ignore_errors=True)
        self.receiver = Receiver()
        environment = {
            "WAN_HOST_MODEL": "tiny-wan",
            "WAN_HOST_DEVICES": device,
            "WAN_HOST_DISABLED_PLUGINS": "qwen_enhance,supabase,thumbnail",
            "WAN_HOST_CALLBACK_URL": self.receiver.url,
            "WAN_HOST_WAN21_PIN_FRAMES": "false",
            "OMP_NUM_THREADS": str(threads),
        }
        if model != SHIPPED:
            environment["WAN_HOST_TINY_WAN_PATH"] = str(model.resolve())
        self.worker = WorkerProcess(data_dir=self.data, environment=environment)

    def __enter__(self):
        self.receiver.__enter__()
        self.worker.__enter__()
        return self

    def __exit__(self, *error):
        self.worker.__exit__(*error)
        self.receiver.__exit__(*error)

    def __call__(self, payload: dict) -> Path:
        frames, side, mode = payload.get("num_frames", FRAMES), payload.get("side", SIDE), payload.get("reference_mode", "none")
        config = {
            "width": side,
            "height": side,
            "frames": frames,
            "fps": FPS,
            "num_inference_steps": DEFAULTS["steps"],
            "guidance_scale": DEFAULTS["guidance"],
            "preset": DEFAULTS["preset"],
            "sample_shift": DEFAULTS["shift"],
            "sample_solver": "unipc",
            "seed": payload["seed"],
            "reference_mode": mode,
        }
        if "source" in payload:
            config |= {"reference_mode": "single", "image": data_uri(payload["source"])}
            config["denoise_strength"] = payload["denoise_strength"]
        if mode == "single":
            config["image"] = data_uri(payload["start"])
        if mode in ("start", "both"):
            config["first_frame"] = data_uri(payload["start"])
        if mode in ("end", "both"):
            config["last_frame"] = data_uri(payload["end"])
        if frames == 1:
            del config["frames"], config["fps"]
        job = {"id": payload["name"], "type": "video_fast" if frames > 1 else "image_fast", "user_id": "judge", "config": config}
        with Redis.from_url(EmbeddedServer(self.data).url) as client:
            client.rpush("wan_queue", json.dumps({**job, "prompt": payload["prompt"]}))
        report = self.receiver.wait_for(payload["name"], "completed", seconds=600)
        return self.data / "outputs" / report["assets"][0]["url"]


def data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


Generate = Callable[[dict], Path]


def measure_captions(generate: Generate, asked: list[Case], name: str, frames: int = FRAMES) -> tuple[dict, list[dict]]:
    """The shares and one row a caption. One frame is an image job, of which no motion is asked."""
    rows: list[dict] = []

    def shares() -> dict[str, float]:
        found = tally(asked[: len(rows)], rows)
        return found if frames > 1 else {key: found[key] for key in ("colour and shape", "colour", "shape", "background")}

    for i, case in enumerate(asked):
        path = generate({"name": f"{name}-{i:03d}", "prompt": case.prompt, "seed": case.seed, "num_frames": frames})
        rows.append({**asdict(case), **judge(case, read_frames(path))})
        if i % 20 == 19:
            print(f"  {i + 1} captions: {_percent(shares())}", flush=True)
    return shares(), rows


def measure_references(generate: Generate, asked: list[Case]) -> dict[str, float]:
    """PSNR of the first frame against the start reference and of the last against the end reference, medians in dB."""
    found: dict[str, list[float]] = {}
    for i, case in enumerate(asked):
        start, end = paint(case, 0.0), paint(case, 1.0)
        for mode in ("none", "single", "start", "end", "both"):
            payload = {"name": f"{mode}-{i:03d}", "prompt": case.prompt, "seed": case.seed, "start": start, "end": end}
            frames = read_frames(generate({**payload, "reference_mode": mode}))
            if mode != "end":
                found.setdefault(f"{mode}: first frame", []).append(psnr(frames[0], np.asarray(start)))
            if mode in ("none", "end", "both"):
                found.setdefault(f"{mode}: last frame", []).append(psnr(frames[-1], np.asarray(end)))
    return {name: median(values) for name, values in found.items()}


def measure_subject(generate: Generate, asked: list[Case]) -> float:
    """Share of the clips in mode ``single`` that show the picture's colour and shape throughout; the prompt names neither."""
    kept = []
    for i, case in enumerate(asked):
        payload = {"name": f"subject-{i:03d}", "prompt": SAID[case.motion], "seed": case.seed, "reference_mode": "single"}
        frames = read_frames(generate({**payload, "start": paint(case, 0.0)}))
        kept.append(things_right(case, [look(frame) for frame in frames])["both"])
    return sum(kept) / len(kept)


def measure_strength(generate: Generate, asked: list[Case]) -> tuple[float, list[float]]:
    """Share of the sources whose distance grows with every step of denoise_strength, and the mean distances."""
    strengths, grew, distances = (0.1, 0.3, 0.5, 0.7, 0.9), [], []
    for i, case in enumerate(asked):
        source = paint(case, 0.5)
        other = asked[(i + len(asked) // 2) % len(asked)]
        row = []
        for strength in strengths:
            payload = {"name": f"image-{i:03d}-{strength}", "prompt": replace(other, motion="still").prompt, "seed": case.seed}
            path = generate({**payload, "num_frames": 1, "source": source, "denoise_strength": strength})
            row.append(float(np.sqrt(((read_frames(path)[0].astype(np.float64) - np.asarray(source)) ** 2).mean())))
        grew.append(all(a < b for a, b in zip(row, row[1:], strict=False)))
        distances.append(row)
    return sum(grew) / len(grew), np.mean(distances, axis=0).round(2).tolist()


def measure_speed(generate: Generate, case: Case) -> float:
    """Seconds from the push of a job to its report, text to video, 17 frames at 128x128: the best of three."""
    took = []
    for i in range(3):
        began = time.perf_counter()
        generate({"name": f"speed-{i}", "prompt": case.prompt, "seed": 1})
        took.append(time.perf_counter() - began)
    return min(took)


def same_twice(generate: Generate, case: Case) -> bool:
    digests = set()
    for i in range(2):
        path = generate({"name": f"twice-{i}", "prompt": case.prompt, "seed": 5})
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    return len(digests) == 1


def ask(generate: Generate, args: argparse.Namespace, asked: dict[str, list[Case]], others: dict, report: dict) -> None:
    """Measure a model and put everything into the report."""
    report["same seed twice"] = same_twice(generate, cases(1)[0])
    report["seconds"] = measure_speed(generate, cases(1)[0])
    print(f"same seed, same file: {report['same seed twice']}; text to video: {report['seconds']:.1f} s", flush=True)
    if args.references:
        moving = [case for case in cases(800) if case.motion in DIRECTIONS][: args.references]
        report["references"] = measure_references(generate, moving)
        report["subject"] = measure_subject(generate, moving)
        print(f"single keeps the subject: {report['subject']:.0%} of {len(moving)}", flush=True)
        print("references, dB:", {k: round(v, 1) for k, v in report["references"].items()}, flush=True)
    if args.sources:
        report["strength"], report["distances"] = measure_strength(generate, cases(args.sources))
        print(f"distance grows with denoise_strength: {report['strength']:.0%} {report['distances']}", flush=True)
    report["rows"], report["against"] = {}, {}
    for name, some in asked.items():
        frames = 1 if name == "images" else FRAMES
        report[name], report["rows"][name] = measure_captions(generate, some, name, frames)
        print(f"{len(some)} {name}: {_percent(report[name])}", flush=True)
        if name in others:
            report["against"][name] = paired(report["rows"][name], others[name], frames)
            print(f"  against {args.against}: {report['against'][name]}", flush=True)


def rows_of(path: Path, asked: dict[str, list[Case]]) -> dict[str, list[dict]]:
    """The rows of another report. SystemExit if it has none, or none by part, or if they are not of the cases asked now."""
    rows = json.loads(path.read_text()).get("rows")
    if rows is None:
        raise SystemExit(f"--against {path}: it has no rows; a report of --skip-model has none")
    if not isinstance(rows, dict):
        raise SystemExit(f"--against {path}: an older report, its rows are not by part (captions, coloured ..): make it again")
    if {k: [(row["prompt"], row["seed"]) for row in v] for k, v in rows.items()} != {
        k: [(case.prompt, case.seed) for case in v] for k, v in asked.items()
    }:
        raise SystemExit(f"--against {path}: it is not of the same --captions, --coloured and --images")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".scratch/tiny_wan_quality")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--coloured", type=int, default=60, help="captions with a background of another colour")
    parser.add_argument("--images", type=int, default=60, help="captions asked of image jobs")
    parser.add_argument("--references", type=int, default=24)
    parser.add_argument("--sources", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="of the worker's lane, such as cuda:0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"])
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance"])
    parser.add_argument("--shift", type=float, default=DEFAULTS["shift"])
    parser.add_argument("--preset", default=DEFAULTS["preset"], help="exact, fast or turbo")
    parser.add_argument("--against", type=Path, help="the quality.json of another preset: compare caption by caption")
    parser.add_argument("--skip-model", action="store_true", help="only judge the judge")
    args = parser.parse_args()
    DEFAULTS.update(steps=args.steps, guidance=args.guidance, shift=args.shift, preset=args.preset)

    parts = {"captions": cases(args.captions), "coloured": cases(args.coloured, coloured=True), "images": cases(args.images)}
    asked = {name: some for name, some in parts.items() if some}
    others = rows_of(args.against, asked) if args.against else {}
    report: dict = {"settings": DEFAULTS | {"device": args.device}}
    report["control"] = control(parts["captions"] + parts["coloured"], args.out / "control")
    print("judge on drawn clips:   ", _percent(report["control"]["drawn"]))
    print("judge, captions shuffled:", _percent(report["control"]["shuffled"]), flush=True)
    if not args.skip_model:
        with Generator(args.model, args.out, args.threads, args.device) as generate:
            ask(generate, args, asked, others, report)
    (args.out / "quality.json").write_text(json.dumps(report, indent=1))


def _percent(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in values.items())


if __name__ == "__main__":
    main()
