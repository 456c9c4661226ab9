"""Wan's native layout: find its files, rename its keys, and turn it into the diffusers layout part by part.

Every key and shape is checked against the diffusers module before the first byte is written.
"""

from __future__ import annotations

import math
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_host import ModelLoadFailed
from wan_host_wan21.checkpoint import NATIVE_TEXT_ENCODER, NATIVE_VAE, Kind, read_json
from wan_host_wan21.layout import write_index
from wan_host_wan21.shards import ShardWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

_HEAD_DIM = 128
_STEM = "diffusion_pytorch_model"
_TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

# wan/modules/t5.py of the original repository, to UMT5EncoderModel.
_T5_NAMES = (
    (r"^token_embedding\.weight$", "shared.weight"),
    (r"^norm\.weight$", "encoder.final_layer_norm.weight"),
    (r"^blocks\.(\d+)\.norm1\.weight$", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\.weight$", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.weight$",
     r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight"),
    (r"^blocks\.(\d+)\.norm2\.weight$", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.weight$", r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight"),
    (r"^blocks\.(\d+)\.ffn\.fc1\.weight$", r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight"),
    (r"^blocks\.(\d+)\.ffn\.fc2\.weight$", r"encoder.block.\1.layer.1.DenseReluDense.wo.weight"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One module to convert: ``tensors`` by native key (read when asked for), ``names`` from native keys to diffusers' keys."""

    name: str
    stem: str
    module: Any
    tensors: Mapping[str, Callable[[], torch.Tensor]]
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    dtype_of: Callable[[str], torch.dtype]

    def check(self) -> None:
        """Raise ModelLoadFailed where the keys or shapes are not exactly the module's."""
        expected = {
            key: tuple(value.shape) for key, value in self.module.state_dict().items() if key != "encoder.embed_tokens.weight"
        }
        given = {self.names[key]: self.shapes[key] for key in self.tensors}
        for problem, keys in (("missing", expected.keys() - given.keys()), ("unknown", given.keys() - expected.keys())):
            if keys:
                raise ModelLoadFailed(f"{self.name}: {len(keys)} {problem} keys, such as {min(keys)}")
        for key, shape in expected.items():
            if given[key] != shape:
                raise ModelLoadFailed(f"{self.name}: {key} is {given[key]}, expected {shape}")

    def bytes(self) -> int:
        """Return the size of the weights as they will be written."""
        return sum(math.prod(self.shapes[key]) * self.dtype_of(self.names[key]).itemsize for key in self.tensors)


@contextmanager
def open_native(path: Path) -> Iterator[tuple[Kind, list[Part]]]:
    """Open a native folder, check every part, and give its kind and parts. Raise ModelLoadFailed, naming what is wrong."""
    from contextlib import ExitStack

    with ExitStack() as files:
        try:
            transformer = _safetensors(path, files)
            kind, part = _transformer_part(path, transformer)
            parts = [_text_encoder_part(path / NATIVE_TEXT_ENCODER), _vae_part(path / NATIVE_VAE), part]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelLoadFailed(f"{path} holds what no checkpoint of Wan holds ({type(error).__name__}: {error})") from error
        if not (path / "google" / "umt5-xxl").is_dir():
            raise ModelLoadFailed(f"{path}: google/umt5-xxl (the tokenizer) is missing")
        for each in parts:
            each.check()
        yield kind, parts


def convert(path: Path, target: Path, kind: Kind, parts: list[Part], advance: Callable[[str, int], None]) -> None:
    """Write the parts of the native folder at ``path`` into ``target``; ``advance`` hears the bytes written of each."""
    for part in parts:
        folder = target / part.name
        folder.mkdir(parents=True)
        _save_config(part.module, folder)
        writer = ShardWriter(folder, part.stem)
        for key in sorted(part.tensors, key=lambda native: part.names[native]):
            name = part.names[key]
            tensor = part.tensors[key]().to(part.dtype_of(name))
            writer.add(name, tensor)
            advance(part.name, tensor.numel() * tensor.element_size())
        writer.close()
    (target / "tokenizer").mkdir()
    for name in _TOKENIZER_FILES:
        source = path / "google" / "umt5-xxl" / name
        if source.is_file():
            shutil.copyfile(source, target / "tokenizer" / name)
    write_index(target, kind)


def _transformer_part(path: Path, tensors: dict[str, Any]) -> tuple[Kind, Part]:
    import torch
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    shapes = {key: tuple(reader.get_shape()) for key, reader in tensors.items()}
    native = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if any(key.startswith("img_emb.") for key in shapes) or native.get("model_type", "t2v") not in {"t2v", "vace"}:
        raise ModelLoadFailed(f"{path} is an image-to-video checkpoint; T2V and VACE can be imported")
    kind = Kind.VACE if "vace_patch_embedding.weight" in shapes else Kind.T2V
    config = _transformer_config(path, shapes, native)
    with torch.device("meta"):
        if kind is Kind.VACE:
            blocks = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("vace_blocks."))
            layers = native.get("vace_layers") or list(range(0, config["num_layers"], config["num_layers"] // blocks))
            channels = shapes["vace_patch_embedding.weight"][1]
            module = WanVACETransformer3DModel(**config, vace_layers=layers, vace_in_channels=channels)
        else:
            module = WanTransformer3DModel(**config)
    # The function renames, and nothing else for these models: names serve as values, and no tensor is read.
    names = {old: new for new, old in convert_wan_transformer_to_diffusers({key: key for key in shapes}).items()}
    kept = tuple(module._keep_in_fp32_modules)  # noqa: SLF001  # what diffusers itself keeps in float32 at loading

    def dtype_of(name: str) -> torch.dtype:
        return torch.float32 if any(mark in name for mark in kept) else torch.bfloat16

    readers = {key: (lambda reader=reader: reader[:]) for key, reader in tensors.items()}
    part = Part(name="transformer", stem=_STEM, module=module, tensors=readers, shapes=shapes, names=names, dtype_of=dtype_of)
    return kind, part


def _transformer_config(path: Path, shapes: Mapping[str, tuple[int, ...]], native: Mapping[str, Any]) -> dict[str, Any]:
    """Return diffusers' configuration, from shapes wherever they tell it."""
    try:
        dim, channels = shapes["patch_embedding.weight"][:2]
        heads = int(native.get("num_heads", dim // _HEAD_DIM))
        return {
            "patch_size": (1, 2, 2),
            "num_attention_heads": heads,
            "attention_head_dim": dim // heads,
            "in_channels": channels,
            "out_channels": shapes["head.head.weight"][0] // 4,
            "text_dim": shapes["text_embedding.0.weight"][1],
            "freq_dim": shapes["time_embedding.0.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "num_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            "eps": float(native.get("eps", 1e-6)),
        }
    except KeyError as error:
        raise ModelLoadFailed(f"{path}: the transformer has no {error.args[0]}") from error


def _vae_part(file: Path) -> Part:
    import torch
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    state = _pickled(file)
    try:
        base, z_dim = state["encoder.conv1.weight"].shape[0], state["conv2.weight"].shape[0]
    except KeyError as error:
        raise ModelLoadFailed(f"{file} has no {error.args[0]}") from error
    with torch.device("meta"):
        module = AutoencoderKLWan(base_dim=base, z_dim=z_dim)
    names = {old: new for new, old in convert_wan_vae_to_diffusers({key: key for key in state}).items()}
    # In full precision: it is small, and its rounding would show.
    return _from_state("vae", module, state, names, torch.float32)


def _text_encoder_part(file: Path) -> Part:
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    state = _pickled(file)
    names = {key: _t5_name(key, file) for key in state}
    try:
        vocabulary, width = state["token_embedding.weight"].shape
        buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
        config = UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=state["blocks.0.attn.q.weight"].shape[0] // heads,
            d_ff=state["blocks.0.ffn.fc1.weight"].shape[0],
            num_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dtype="bfloat16",
            architectures=["UMT5EncoderModel"],
        )
    except KeyError as error:
        raise ModelLoadFailed(f"{file} has no {error.args[0]}") from error
    with torch.device("meta"):
        module = UMT5EncoderModel(config)
    return _from_state("text_encoder", module, state, names, torch.bfloat16)


def _t5_name(key: str, file: Path) -> str:
    for pattern, replacement in _T5_NAMES:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    raise ModelLoadFailed(f"{file} holds {key}, which is no key of Wan's text encoder")


def _from_state(name: str, module: Any, state: Mapping[str, torch.Tensor], names: Mapping[str, str], dtype: torch.dtype) -> Part:
    return Part(
        name=name,
        stem="model" if name == "text_encoder" else _STEM,
        module=module,
        tensors={key: (lambda tensor=tensor: tensor) for key, tensor in state.items()},
        shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
        names=names,
        dtype_of=lambda _: dtype,
    )


def _pickled(file: Path) -> dict[str, torch.Tensor]:
    """Map a .pth file's tensors into memory; nothing in it is executed."""
    import pickle

    import torch

    if not file.is_file():
        raise ModelLoadFailed(f"{file} is missing")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelLoadFailed(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelLoadFailed(f"{file} holds no plain dictionary of tensors")
    return state


def _safetensors(path: Path, files: Any) -> dict[str, Any]:
    """Return a reader for every tensor of the transformer, in one file or in shards with an index."""
    from safetensors import SafetensorError, safe_open

    index = path / f"{_STEM}.safetensors.index.json"
    shards = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [f"{_STEM}.safetensors"]
    readers: dict[str, Any] = {}
    for shard in shards:
        if not (path / shard).is_file():
            raise ModelLoadFailed(f"{path / shard} is missing")
        try:
            opened = files.enter_context(safe_open(path / shard, framework="pt"))
            readers |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  # it is no mapping
        except SafetensorError as error:
            raise ModelLoadFailed(f"{path / shard} cannot be read: {error}") from error
    return readers


def _save_config(module: Any, folder: Path) -> None:
    if hasattr(module, "save_config"):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
