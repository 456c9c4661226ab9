"""Reading published files back into frames."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_host.encoding import ffmpeg_path
from wan_host.probe import probe

_TO_RGB = (
    "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact,"
    "format=rgb24"
)


def read_frames(path: Path) -> NDArray[np.uint8]:
    """Decode an MP4 or PNG that the host made: uint8 RGB of shape (frames, height, width, 3), one frame for an image."""
    found = probe(path)
    if found.format == "png":
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))[np.newaxis]
    command = [ffmpeg_path(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-vf", _TO_RGB, "-f", "rawvideo", "-"]
    decoded = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)  # noqa: S603  # no shell
    return np.frombuffer(decoded.stdout, np.uint8).reshape(-1, found.height, found.width, 3)


def psnr(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two equally shaped arrays in dB, infinite where they are equal."""
    error = float(np.mean((left.astype(np.float32) - right.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
