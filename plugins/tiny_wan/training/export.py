"""Stage 3: one checkpoint folder, as the official pipelines load it, from the two trained stages.

python -m training.export --vae runs/vae --transformer runs/transformer --out wan_host_tiny_wan/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.architecture import Size, build_text_encoder, build_tokenizer, build_transformer, save_checkpoint
from training.train_transformer import resume_from
from training.train_vae import load

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--transformer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    transformer, text_encoder = build_transformer(Size()), build_text_encoder(Size(), len(tokenizer))
    resume_from(args.transformer, transformer, text_encoder)
    save_checkpoint(args.out, load(args.vae, Size()), transformer, text_encoder, tokenizer)
