"""Stage 3: one checkpoint folder, as the official pipelines load it, from the two trained stages.

python -m training.export --vae runs/vae --transformer runs/transformer --out wan_host_tiny_wan/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.architecture import Size, save_checkpoint
from training.train_transformer import build_models
from training.train_vae import load

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer, transformer, text_encoder = build_models(Size(), args.transformer, torch.device("cpu"))
    save_checkpoint(args.out, load(args.vae, Size()), transformer, text_encoder, tokenizer)
