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
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
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


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny model: ``instruct``, ``base`` (with an untaught template, as Qwen's) or ``bare`` (without)."""
    kinds = {
        "instruct": {"template": True, "taught": True},
        "base": {"template": True, "taught": False},
        "bare": {"template": False, "taught": False},
    }
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in written:
            written[kind] = write_tiny(tmp_path_factory.mktemp("models") / f"tiny-{kind}", **kinds[kind])
        return written[kind]

    return folder
