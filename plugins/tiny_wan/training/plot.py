"""The loss curves of both stages, as a small picture: python -m training.plot RUNS training/losses.png."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

runs, out = Path(sys.argv[1]), Path(sys.argv[2])
vae = json.loads((runs / "vae/vae.json").read_text())["history"]
transformer = json.loads((runs / "transformer/transformer.json").read_text())["history"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for frames, label in ((1, "single frames"), (17, "17 frames")):
    rows = [row for row in vae if row[2] == frames]
    left.plot([row[1] for row in rows], [row[4] for row in rows], label=label)
left.set(xlabel="seconds", ylabel="PSNR of a batch, dB", title="autoencoder, one H100")
for column, label in ((2, "text only"), (3, "with a VACE control")):
    right.plot([row[1] for row in transformer], [row[column] for row in transformer], label=label)
right.set(xlabel="seconds", ylabel="loss", title="transformer, one H100", yscale="log")
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
figure.savefig(out, dpi=90)
