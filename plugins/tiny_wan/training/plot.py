"""The loss curves of both stages, one run after the other: python -m training.plot losses.png RUNS [RUNS ...]."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STAGES = "vae/vae.json", "transformer/transformer.json"


def histories(runs: list[Path], name: str) -> Iterator[tuple[float, list[list[float]]]]:
    """Yield the seconds that went before, and the rows, of each run that has this stage."""
    before = 0.0
    for run in runs:
        file = run / name
        if file.exists():
            rows = json.loads(file.read_text())["history"]
            yield before, rows
            before += rows[-1][1]


if len(sys.argv) <= 2:
    sys.exit(__doc__)
out, *runs = map(Path, sys.argv[1:])
for run in runs:
    if not any((run / name).exists() for name in STAGES):
        sys.exit(f"{run} has none of {', '.join(STAGES)}")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for before, history in histories(runs, STAGES[0]):
    left.axvline(before, color="gray", linestyle=":", linewidth=1)
    for colour, (frames, label) in enumerate(((1, "single frames"), (17, "17 frames"))):
        rows = [row for row in history if row[2] == frames]
        left.plot([before + row[1] for row in rows], [row[4] for row in rows], f"C{colour}", label=None if before else label)
for before, history in histories(runs, STAGES[1]):
    right.axvline(before, color="gray", linestyle=":", linewidth=1)
    seconds = [before + row[1] for row in history]
    for colour, label in enumerate(("text only", "with a VACE control")):
        right.plot(seconds, [row[2 + colour] for row in history], f"C{colour}", label=None if before else label)
left.set(xlabel="seconds", ylabel="PSNR of a batch, dB", title="autoencoder")
right.set(xlabel="seconds", ylabel="loss", title="transformer", yscale="log")
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
figure.savefig(out, dpi=90)
