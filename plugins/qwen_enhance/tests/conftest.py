"""Tiny Qwen2 models of random weights, written as their makers write them, and a lane context that counts heartbeats."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Recorder:
    """A LaneContext. At the beat numbered ``stop_at`` it raises ``error``."""

    device: str = "cpu"
    beats: list[str] = field(default_factory=list)
    stop_at: int | None = None
    error: Exception | None = None

    def check(self) -> None:
        pass

    def step(self, step: int, total: int) -> None:
        self.progress(f"step {step}/{total}")

    def progress(self, note: str = "") -> None:
        self.beats.append(note)
        if len(self.beats) == self.stop_at and self.error is not None:
            raise self.error

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def preview(self, image: Any) -> None:
        pass


def write_tiny(folder: Path, *, template: bool, taught: bool) -> Path:
    """Write a Qwen2 of two small layers; ``taught`` ones end their texts as the chat template ends a turn."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "th"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    end = "<|im_end|>" if taught else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    if template:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        eos_token_id=vocabulary[end],
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def write_gguf(source: Path, target: Path) -> Path:
    """Write the tiny model in ``source`` as a GGUF file, as llama.cpp's converter does: metadata, vocabulary, tensors."""
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen2Config

    config, tokenizer = Qwen2Config.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in load_file(source / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the settings of the person who runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith("WAN_HOST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WAN_HOST_CONFIG", str(tmp_path / "wan-host.toml"))
    (tmp_path / "wan-host.toml").touch()


@pytest.fixture(scope="session")
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny model: ``instruct``, ``base`` (with an untaught template, as Qwen's), ``bare`` (without), or ``gguf``."""
    kinds = {
        "instruct": {"template": True, "taught": True},
        "base": {"template": True, "taught": False},
        "bare": {"template": False, "taught": False},
    }
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind == "gguf" and kind not in written:
            written[kind] = write_gguf(folder("instruct"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")
        elif kind not in written:
            written[kind] = write_tiny(tmp_path_factory.mktemp("models") / f"tiny-{kind}", **kinds[kind])
        return written[kind]

    return folder
