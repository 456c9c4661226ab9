"""What tiny-wan is made of, and how it becomes a checkpoint folder in the official diffusers layout."""

# ruff: noqa: ANN001, D103, D401, PLR0917 - numerical scripts: shapes in docstrings say more than types, and formulas have many arguments and constants
from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACETransformer3DModel
from sentencepiece import sentencepiece_model_pb2
from torch import nn
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from training.captions import vocabulary

TEXT_TOKENS = 127  # longest prompt in training; the pipelines pad to 512 (see joint.py)
FLOW_SHIFT = 3.0
SHARD = "15MB"


@dataclass(frozen=True)
class Size:
    """The numbers that set the models' sizes. The default has 13 M transformer and 1.4 M autoencoder weights."""

    layers: int = 8
    heads: int = 8
    head_dim: int = 32
    ffn: int = 1024
    vace_layers: tuple[int, ...] = (0, 2, 4)
    text_dim: int = 128
    vae_base: int = 16
    vae_mult: tuple[int, ...] = (1, 2, 3, 3)


TINY = Size(layers=2, heads=2, head_dim=12, ffn=32, vace_layers=(0,), text_dim=16, vae_base=4, vae_mult=(1, 1, 1, 1))


def build_tokenizer() -> T5TokenizerFast:
    """Whole words as pieces: the world has few. Any other word becomes the unknown token.

    Loaded from a folder, the T5 class keeps a file's pieces and its precompiled character map, and nothing else of it.
    So lower case and the spaces around punctuation are rules of that map, which sentencepiece compiles.
    """
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [("▁" + word, -3.0) for word in vocabulary()]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=_character_map(), model_max_length=512)


def _character_map() -> bytes:
    rules = {chr(c): chr(c).lower() for c in range(ord("A"), ord("Z") + 1)}
    rules |= {mark: f" {mark} " for mark in ".,"} | dict.fromkeys(";:!?()", " , ")
    rules |= dict.fromkeys("-\"'/_*#[]{}\n\t\u2013\u2014\u2018\u2019\u201c\u201d", " ")
    lines = [f"{ord(k):X}\t{' '.join(f'{ord(c):X}' for c in v)}" for k, v in rules.items()]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.tsv").write_text("\n".join(lines) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"]),
            model_prefix=f"{folder}/map",
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=f"{folder}/rules.tsv",
            minloglevel=2,
        )
        proto = sentencepiece_model_pb2.ModelProto.FromString((Path(folder) / "map.model").read_bytes())
    return proto.normalizer_spec.precompiled_charsmap


def build_text_encoder(size: Size, vocab_size: int) -> UMT5EncoderModel:
    """Two layers, trained from scratch together with the transformer."""
    config = UMT5Config(
        vocab_size=-(-vocab_size // 64) * 64,
        d_model=size.text_dim,
        d_kv=size.text_dim // 4,
        d_ff=size.text_dim * 2,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        is_encoder_decoder=False,
    )
    return UMT5EncoderModel(config)


def build_vae(size: Size) -> AutoencoderKLWan:
    """Wan 2.1's autoencoder: 8 times smaller in space, 4 times in time, 16 channels."""
    return AutoencoderKLWan(
        base_dim=size.vae_base,
        z_dim=16,
        dim_mult=list(size.vae_mult),
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )


def build_transformer(size: Size) -> WanVACETransformer3DModel:
    """A T2V transformer with VACE control blocks, initialised so that it starts as the identity and sees its prompt."""
    model = WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=size.text_dim,
        freq_dim=256,
        ffn_dim=size.ffn,
        num_layers=size.layers,
        cross_attn_norm=True,
        rope_max_seq_len=1024,
        vace_layers=list(size.vace_layers),
        vace_in_channels=96,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(model.proj_out.weight)
    for block in model.vace_blocks:
        nn.init.zeros_(block.proj_out.weight)
    # The pipelines pad prompts to 512 tokens with zeros and attend to all of them: at first 500 equal keys would drown
    # the words. A padding key is nothing but its bias, so a key bias that every query starts opposed to makes it quiet.
    for block in (*model.blocks, *model.vace_blocks):
        direction = torch.randn(block.attn2.to_k.bias.shape)
        direction = direction / direction.pow(2).mean().sqrt()
        with torch.no_grad():
            block.attn2.to_k.bias.copy_(0.05 * direction)
            block.attn2.to_q.bias.copy_(-0.8 * direction)
    return model


def build_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def save_checkpoint(folder: Path, vae, transformer, text_encoder, tokenizer, dtype=torch.bfloat16) -> None:
    """Write the folder that `WanVACEPipeline.from_pretrained` reads; the models are cast to dtype in place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("vae", vae), ("transformer", transformer), ("text_encoder", text_encoder)):
        model.to(dtype).save_pretrained(folder / name, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder / "tokenizer")
    build_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanVACEPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanVACETransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    import sys

    # An untrained checkpoint of the right form, for tests of loaders: python -m training.architecture FOLDER
    torch.manual_seed(0)
    tok = build_tokenizer()
    size = Size()
    save_checkpoint(Path(sys.argv[1]), build_vae(size), build_transformer(size), build_text_encoder(size, len(tok)), tok)
