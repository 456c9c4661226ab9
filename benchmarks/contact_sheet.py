"""The README's pictures: what comes out of `wan-host generate` with tiny-wan, prompt by prompt and mode by mode.

Every row is one published file, shown as five of its frames. The modes' sheet draws its own references.

    python benchmarks/contact_sheet.py docs/images
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wan_host.testing.media import read_frames

PROMPTS = (
    "a red circle moves to the right on a blue background",
    "a large green square moves down on a white background",
    "a yellow triangle rotates on a black background",
    "a big blue square moves to the left on a striped background",
    "a red star shrinks on a checkered background",
)
SHOWN, SIDE, TEXT = 5, 128, 16


def picture(x: int) -> Image.Image:
    """Draw a reference: a red circle on gray at ``x``."""
    image = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    ImageDraw.Draw(image).ellipse((x - 20, 44, x + 20, 84), fill=(220, 40, 40))
    return image


def generate(folder: Path, prompt: str, *options: str) -> np.ndarray:
    """Run the command line; return the frames of the published file, uint8 (frames, height, width, 3)."""
    command = [sys.executable, "-m", "wan_host", "generate", prompt, "--output", str(folder), "--seed", "7", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_frames(folder / "0.mp4")


def row(frames: np.ndarray, title: str, given: tuple[Image.Image | None, Image.Image | None] = (None, None)) -> Image.Image:
    """Draw one file: its title, the references it was given, and frames from first to last."""
    strip = Image.new("RGB", ((SHOWN + 2) * (SIDE + 4), SIDE + TEXT + 6), "white")
    ImageDraw.Draw(strip).text((4, 2), title, fill="black")
    chosen = [frames[round(index * (len(frames) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
    pictures = [given[0], *(Image.fromarray(frame) for frame in chosen), given[1]]
    for index, image in enumerate(pictures):
        if image is not None:
            strip.paste(image.resize((SIDE, SIDE)), (index * (SIDE + 4), TEXT))
    return strip


def sheet(rows: list[Image.Image], path: Path) -> None:
    """Stack rows into a file."""
    whole = Image.new("RGB", (rows[0].width, sum(strip.height for strip in rows)), "white")
    top = 0
    for strip in rows:
        whole.paste(strip, (0, top))
        top += strip.height
    whole.quantize(128).save(path, optimize=True)


def main() -> None:
    """Write ``prompts.png`` and ``modes.png`` into the folder that the first argument names."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sheet([row(generate(folder, prompt), prompt) for prompt in PROMPTS], target / "prompts.png")
        left, right = picture(34), picture(94)
        left.save(folder / "left.png")
        right.save(folder / "right.png")
        prompt = "a red circle moves to the right on a gray background"
        first, last = str(folder / "left.png"), str(folder / "right.png")
        modes = {
            "none": ((), (None, None)),
            "single": (("--image", first), (left, None)),
            "start": (("--first-frame", first), (left, None)),
            "end": (("--last-frame", last), (None, right)),
            "both": (("--first-frame", first, "--last-frame", last), (left, right)),
        }
        rows = [
            row(generate(folder, prompt, "--mode", mode, *options), f"mode {mode}: {prompt}", given)
            for mode, (options, given) in modes.items()
        ]
        sheet(rows, target / "modes.png")


if __name__ == "__main__":
    main()
