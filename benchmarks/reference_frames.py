"""Do the first and last published frames match their references, and do they join smoothly? Measured on tiny-wan's files.

    python benchmarks/reference_frames.py                     # drawn references
    python benchmarks/reference_frames.py --photos FOLDER     # photographs too, such as those in scikit-image's wheel

Each file is made as a job is: generated in a lane, pinned, encoded, and read back. The promise is 35 dB, and a step beside a
pinned frame of at most 1.5 medians of the clip's steps. Frames are decoded twice: with interpolated chroma, as players do,
and as ffmpeg does unless told otherwise, without. The last column is what 4:2:0 leaves without it, whatever the encoder.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tiny_wan_quality import DIRECTIONS, cases, paint

from wan_host import ReferenceMode, References
from wan_host.encoding import encode_asset, ffmpeg_path
from wan_host.hooks import Hooks
from wan_host.plugins import discover
from wan_host.testing.lane import FakeLane
from wan_host.testing.media import psnr, read_frames
from wan_host.testing.samples import sample_context, sample_request

SIDE, FRAMES = 128, 17
PROMISED = 35


def drawn(count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield captions with the first and last frame that they describe."""
    for case in [case for case in cases(800) if case.motion in DIRECTIONS][:count]:
        yield case.prompt, np.asarray(paint(case, 0.0)), np.asarray(paint(case, 1.0))


def photographs(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield pictures and their middles, as a camera that nears gives them."""
    for path in sorted(folder.iterdir()):
        try:
            picture = Image.open(path).convert("RGB")
        except OSError:
            continue
        width, height = picture.size
        nearer = picture.crop((width // 16, height // 16, width - width // 16, height - height // 16))
        first, last = (np.asarray(ImageOps.fit(one, (SIDE, SIDE), Image.Resampling.LANCZOS)) for one in (picture, nearer))
        yield f"a photograph ({path.stem})", first, last


def without_interpolation(path: Path) -> np.ndarray:
    """Decode as ffmpeg does by default: each value of chroma stands for four pixels."""
    command = [
        ffmpeg_path(),
        "-v",
        "error",
        "-i",
        str(path),
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    pixels = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)


def ceiling(picture: np.ndarray) -> float:
    """PSNR of a picture whose chroma was halved and nothing else."""
    rgb_of = np.linalg.inv(to_yuv := np.array([[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]]))
    yuv = picture @ to_yuv.T
    halved = yuv.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3), keepdims=True)
    yuv[..., 1:] = np.broadcast_to(halved, (SIDE // 2, 2, SIDE // 2, 2, 3)).reshape(yuv.shape)[..., 1:]
    return psnr(np.clip(np.rint(yuv @ rgb_of.T), 0, 255).astype(np.uint8), picture)


def step_ratio(frames: np.ndarray, ends: list[int]) -> float:
    """Return the largest step beside a pinned frame, in medians of all steps."""
    steps = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    return float(max(steps[0 if end == 0 else -1] for end in ends) / np.median(steps))


def main() -> None:
    """Measure every mode on every reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=int, default=12)
    parser.add_argument("--photos", type=Path, help="a folder of photographs")
    parser.add_argument("--modes", default="start,end,both,single")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    given = [*drawn(args.drawn), *(photographs(args.photos) if args.photos else ())]
    hooks, rows = Hooks(discover()), []
    with FakeLane(hooks) as lane, tempfile.TemporaryDirectory() as folder:
        lane.load("tiny-wan")
        for seed, (prompt, first, last) in enumerate(given):
            for mode in (ReferenceMode(name) for name in args.modes.split(",")):
                size = {"width": SIDE, "height": SIDE, "frames": FRAMES, "num_inference_steps": args.steps, "guidance_scale": 3.0}
                request = replace(
                    sample_request(hooks.models()["tiny-wan"], **size), prompt=prompt, seed=seed, reference_mode=mode,
                    references=References(image=first, first_frame=first, last_frame=last),
                )  # fmt: skip
                clip = lane.generate("tiny-wan", request).clips[0]
                path = encode_asset(
                    clip, asset_index=0, kind="video", fps=8, workdir=Path(folder), context=sample_context(Path(folder)),
                    finer=request.reference_frames,
                ).path  # fmt: skip
                ends = {end: first if end == 0 else last for end in request.reference_frames}
                players, plain = read_frames(path), without_interpolation(path)
                row = (
                    min(psnr(players[end], wanted) for end, wanted in ends.items()),
                    min(psnr(plain[end], wanted) for end, wanted in ends.items()),
                    step_ratio(players, list(ends)),
                    min(ceiling(wanted) for wanted in ends.values()),
                )
                rows.append((prompt.startswith("a photograph ("), mode, row))
                print(f"{mode:6} {row[0]:5.1f} dB {row[1]:5.1f} dB {row[2]:5.2f} medians {row[3]:5.1f} dB  {prompt}", flush=True)
    for kind in (False, True):
        chosen = np.array([row for photo, _, row in rows if photo is kind])
        if len(chosen):
            print(
                f"{'photographs' if kind else 'drawn'}, {len(chosen)} files: worst {chosen[:, 0].min():.1f} dB, median "
                f"{np.median(chosen[:, 0]):.1f} dB (without interpolation "
                f"{chosen[:, 1].min():.1f}, {np.median(chosen[:, 1]):.1f}), "
                f"{(chosen[:, 0] >= PROMISED).mean():.0%} at {PROMISED} dB or more; worst step {chosen[:, 2].max():.2f} medians"
            )


if __name__ == "__main__":
    main()
