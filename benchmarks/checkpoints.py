"""What a checkpoint costs: its size, and the time to write and to read the file, the digest of every byte included.

    python benchmarks/checkpoints.py [--rounds 9] [--folder FOLDER]

Random latents of 83 frames of 480x832 in float32, as wan21 saves them: the latents and what the solver remembers of earlier
steps, one array for dpm++ and three for unipc. FOLDER should be on the disk of the data folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from wan_host.checkpoint import Checkpoint, read, write

SHAPE = (1, 16, 21, 60, 104)
"""Channels, frames, height and width of the latents of 81 to 84 frames of 480x832."""
ARRAYS = {"dpm++": 2, "unipc": 4}
IDENTITY = {"job": "bench", "request": "bench", "device": "bench"}


def measure(arrays: int, folder: Path, rounds: int) -> tuple[float, float, float]:
    """Return the size in MB and the medians of the seconds to write and to read."""
    dice = np.random.default_rng(0)
    checkpoint = Checkpoint(step=10, arrays={f"array {n}": dice.standard_normal(SHAPE, np.float32) for n in range(arrays)})
    path = folder / "job.safetensors"
    writing, reading = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        write(path, checkpoint, IDENTITY)
        written = time.perf_counter()
        if read(path, IDENTITY) is None:
            raise RuntimeError(f"{path} is not there")
        writing.append(written - began)
        reading.append(time.perf_counter() - written)
    return path.stat().st_size / 1e6, statistics.median(writing), statistics.median(reading)


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wan-host-bench-", dir=given.folder) as folder:
        for solver, arrays in ARRAYS.items():
            size, writing, reading = measure(arrays, Path(folder), given.rounds)
            print(f"{solver}: {size:.1f} MB, written in {writing:.3f} s, read in {reading:.3f} s (medians of {given.rounds})")


if __name__ == "__main__":
    main()
