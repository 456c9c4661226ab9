"""Is `plugins/enhance_video` better than doing nothing clever? PSNR and SSIM against true frames, and time per frame.

    python benchmarks/enhance_video.py                    # all of it, about five minutes
    python benchmarks/enhance_video.py --clips 0          # without tiny-wan's own clips
    python benchmarks/enhance_video.py --photos FOLDER    # photographs too, such as those in scikit-image's wheel

Interpolation: every second frame of a clip is left out and restored; repetition of the frame before and mixing of both neighbours
are what it has to beat. Upscaling: a clip is halved and enlarged again; bicubic is to be beaten. True clips come from
tiny-wan's training world (drawn at 128x128 as the model makes them, and at 480x832, 83 frames), and from tiny-wan itself.
Photographs pan and grow behind a disc that is cut out of the next one and moves against them.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from wan_host_enhance_video.enlarging import enlarge, enlarge_all
from wan_host_enhance_video.motion import in_between, retime

from wan_host.testing.media import psnr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins/tiny_wan"))

PROMPTS = (
    "a red circle moves to the right on a blue background",
    "a green star grows on a black background",
    "a yellow square moves up on a gray background",
    "a blue triangle rotates on a white background",
    "a purple ring moves down left on a striped background",
    "a cyan cross moves left on a dotted background",
    "an orange star moves down on a checkered background",
    "a pink square rotates on a green background",
)
STILL = 50.0
"""dB: a pair of frames that differ less than this shows nothing of motion and is left out."""


class Anyone:
    """The context of a job that nobody cancels."""

    def progress(self, note: str = "") -> None:
        """Go on."""


def ssim(made: np.ndarray, true: np.ndarray) -> float:
    """Return the mean of Wang et al. (2004), Gaussian window of 11 pixels, over pixels and channels."""
    a, b = made.astype(np.float64), true.astype(np.float64)

    def around(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    mean_a, mean_b = around(a), around(b)
    variances = around(a * a) - mean_a**2 + around(b * b) - mean_b**2
    covariance = around(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        (((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean()
    )


def drawn(count: int, frames: int, height: int, width: int, part: slice) -> Iterator[np.ndarray]:
    """Yield clips of the training world in which something moves, uint8 (frames, height, width, 3)."""
    from training.world import MOTIONS, render, sample_scenes

    scenes = sample_scenes(4 * count, 20_261_122)
    moving = np.flatnonzero(scenes.motion[:, 0] != MOTIONS.index("still"))[:count]
    for index in moving:
        clip = render(scenes[[index]], frames, height, width)[0].numpy()
        yield np.ascontiguousarray(((clip + 1) * 127.5).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 3, 0)[part])


def generated(count: int) -> tuple[list[np.ndarray], dict[int, float]]:
    """Return clips of tiny-wan (17 frames of 128x128), and the seconds that 17 and 9 frames take it."""
    from wan_host.hooks import Hooks
    from wan_host.plugins import discover
    from wan_host.testing.lane import FakeLane
    from wan_host.testing.samples import sample_request

    hooks = Hooks(discover())
    clips: list[np.ndarray] = []
    seconds: dict[int, list[float]] = {17: [], 9: []}
    with FakeLane(hooks) as lane:
        lane.load("tiny-wan")
        for seed, prompt in enumerate(PROMPTS[:count]):
            for frames, taken in seconds.items():
                size = {"width": 128, "height": 128, "frames": frames, "num_inference_steps": 12, "guidance_scale": 3.0}
                request = replace(sample_request(hooks.models()["tiny-wan"], **size), prompt=prompt, seed=seed)
                begun = time.perf_counter()
                clip = lane.generate("tiny-wan", request).clips[0].frames
                taken.append(time.perf_counter() - begun)
                if frames == max(seconds):
                    clips.append(clip)
    return clips, {frames: float(np.median(taken)) for frames, taken in seconds.items()}


def photographs(folder: Path) -> list[np.ndarray]:
    """Return the colour pictures of a folder, uint8 RGB with even sides."""
    read = (cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(folder.iterdir()))
    return [picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2] for picture in read if picture is not None]


def panned(pictures: list[np.ndarray], frames: int = 7, height: int = 416, width: int = 240) -> Iterator[np.ndarray]:
    """Yield clips of photographs that pan and grow, each behind a turning disc of the next one: about 2 and 5 pixels a frame."""
    rows, columns = np.mgrid[0:height, 0:width]
    for number, picture in enumerate(pictures):
        larger = 1.5 * max(height / picture.shape[0], width / picture.shape[1])
        ground = cv2.resize(picture, None, fx=larger, fy=larger, interpolation=cv2.INTER_AREA if larger < 1 else cv2.INTER_CUBIC)
        disc = cv2.resize(pictures[(number + 1) % len(pictures)], (160, 160), interpolation=cv2.INTER_AREA)
        angle = 1.1 * number
        clip = []
        for index in range(frames):
            zoom = 1 + 0.01 * index
            pan = np.float32([[zoom, 0, -20 - 1.5 * index * np.cos(angle)], [0, zoom, -30 - 1.5 * index * np.sin(angle)]])
            behind = cv2.warpAffine(ground, pan, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            x, y = (side / 2 + 5 * turn(angle + 2) * (index - frames / 2) for side, turn in ((width, np.cos), (height, np.sin)))
            turned = cv2.getRotationMatrix2D((80, 80), index, 1)
            turned[:, 2] += (x - 80, y - 80)
            front = cv2.warpAffine(disc, turned, (width, height), flags=cv2.INTER_CUBIC)
            cover = np.clip(70.5 - np.hypot(columns - x, rows - y), 0, 1)[..., None]
            clip.append((behind * (1 - cover) + front * cover).round().astype(np.uint8))
        yield np.stack(clip)


def table(
    title: str, methods: dict[str, Callable[..., np.ndarray]], cases: list[tuple[tuple[np.ndarray, ...], np.ndarray]]
) -> None:
    """Print PSNR (median, and of the worst twentieth) and SSIM (mean, worst) of every method."""
    print(f"\n{title}, {len(cases)} frames\n{'':12}  PSNR median  worst 5 %   SSIM mean  worst")
    for name, method in methods.items():
        made = [(psnr(frame, true), ssim(frame, true)) for frame, true in ((method(*given), true) for given, true in cases)]
        decibels, structure = np.array(made).T
        figures = f"{np.median(decibels):8.1f} dB  {np.percentile(decibels, 5):6.1f} dB   {structure.mean():9.4f}"
        print(f"{name:12}  {figures}  {structure.min():.3f}")


def interpolation(title: str, clips: list[np.ndarray]) -> None:
    """Leave out every second frame and restore it from its neighbours."""
    cases = [
        ((clip[index - 1], clip[index + 1]), clip[index])
        for clip in clips
        for index in range(1, len(clip) - 1, 2)
        if psnr(clip[index - 1], clip[index + 1]) < STILL
    ]
    methods = {
        "repeated": lambda first, _: first,
        "mixed": lambda first, second: cv2.addWeighted(first, 0.5, second, 0.5, 0),
        "interpolate": lambda first, second: in_between(first, second, [0.5])[0],
    }
    table(f"interpolation, {title}", methods, cases)


def averaged(picture: np.ndarray) -> np.ndarray:
    """Return half of a picture as `upscale` itself assumes it."""
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def resampled(picture: np.ndarray) -> np.ndarray:
    """Return half of a picture as nobody assumes it: by Pillow's Lanczos filter."""
    return np.asarray(Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2), Image.Resampling.LANCZOS))


def upscaling(title: str, clips: list[np.ndarray], halve: Callable[[np.ndarray], np.ndarray] = averaged) -> None:
    """Halve the first, the middle and the last frame, and enlarge them again."""
    true = [clip[index] for clip in clips for index in sorted({0, len(clip) // 2, len(clip) - 1})]
    cases = [((halve(frame),), frame) for frame in true]

    def by(interpolation: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda picture: cv2.resize(picture, None, fx=2, fy=2, interpolation=interpolation)

    kinds = {"repeated": cv2.INTER_NEAREST, "bicubic": cv2.INTER_CUBIC, "Lanczos": cv2.INTER_LANCZOS4}
    table(f"upscaling, {title}", {**{name: by(kind) for name, kind in kinds.items()}, "upscale": enlarge}, cases)


def speed(clip: np.ndarray) -> None:
    """Print the time of a new frame of 480x832, with one core and with all."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for cores in dict.fromkeys((tuple(every[:1]), tuple(every))):
        if cores:
            os.sched_setaffinity(0, cores)
        for name, work, made in (
            ("interpolate", lambda: retime(clip, 2 * len(clip) - 1, Anyone()), len(clip) - 1),
            ("upscale to 960x1664", lambda: enlarge_all(clip, Anyone()), len(clip)),
        ):
            taken, spent = [], []
            for _ in range(5):
                begun, busy = time.perf_counter(), time.process_time()
                work()
                taken.append(time.perf_counter() - begun)
                spent.append(time.process_time() - busy)
            wall, processing = (1000 * min(values) / made for values in (taken, spent))
            size = f"{clip.shape[2]}x{clip.shape[1]}"
            used = f"{processing:4.0f} ms of processor time, {len(cores) or 'all'} core(s)"
            print(f"{name:20} {wall:6.0f} ms a frame of {size}, {used}")


def processor() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=len(PROMPTS), help="clips of tiny-wan to generate")
    parser.add_argument("--scenes", type=int, default=60, help="scenes of the training world to draw")
    parser.add_argument("--photos", type=Path, help="a folder of photographs")
    args = parser.parse_args()
    print(f"{processor()}, OpenCV {cv2.__version__}")
    whole = slice(None)
    small = list(drawn(args.scenes, 17, 128, 128, whole))
    large = list(drawn(max(1, args.scenes // 6), 83, 832, 480, slice(36, 45)))
    interpolation("drawn, 128x128, 17 frames", small)
    interpolation("drawn, 480x832, 83 frames", large)
    upscaling("drawn, to 128x128", small)
    upscaling("drawn, to 480x832", large)
    if args.photos:
        pictures = photographs(args.photos)
        interpolation("photographs, 240x416", list(panned(pictures)))
        upscaling("photographs", [picture[None] for picture in pictures])
        upscaling("photographs, halved by Lanczos", [picture[None] for picture in pictures], resampled)
    if args.clips:
        clips, seconds = generated(args.clips)
        interpolation("tiny-wan, 128x128, 17 frames", clips)
        upscaling("tiny-wan, to 128x128", clips)
        print(f"\ntiny-wan, 17 frames: {seconds[17]:.2f} s; 9 frames: {seconds[9]:.2f} s (medians)")
        begun = time.perf_counter()
        retime(clips[0][::2], 17, Anyone())
        print(f"interpolate, 9 to 17 frames of 128x128: {time.perf_counter() - begun:.3f} s")
    print()
    speed(large[0])


if __name__ == "__main__":
    main()
