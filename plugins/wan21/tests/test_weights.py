"""Weights are read as the libraries read them, bit for bit, but straight to where they rest."""

from __future__ import annotations

import itertools
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch  # noqa: TID253  # a test of torch code
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel  # noqa: TID253  # as above
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, UMT5EncoderModel  # noqa: TID253  # as above
from wan_host_wan21 import weights
from wan_host_wan21.checkpoint import Kind
from wan_host_wan21.model import load
from wan_host_wan21.weights import fill, outline

from wan_host import ModelLoadFailed

CPU = torch.device("cpu")
CLASSES = {"text_encoder": UMT5EncoderModel, "vae": AutoencoderKLWan, "image_encoder": CLIPVisionModel}


def class_of(kind, part):
    return CLASSES.get(part, WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel)


def tensors(module):
    return dict(itertools.chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))


def read(cls, folder, dtype=torch.float32):
    module = outline(cls, folder, dtype)
    fill(module, folder, CPU)
    return module


def assert_same(module, stock):
    ours, theirs = tensors(module), tensors(stock)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].device, ours[key].stride()) == (tensor.dtype, tensor.device, tensor.stride()), key
        assert torch.equal(ours[key], tensor), key


@pytest.fixture
def part(tiny_folder, tmp_path):
    """Return a function that copies a part of a tiny checkpoint, which a test may then change."""
    return lambda kind, name: shutil.copytree(tiny_folder(kind) / name, tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(Kind))
def test_every_tensor_is_the_one_that_from_pretrained_makes(kind, dtype, tiny_folder):
    for folder in (path for path in tiny_folder(kind).iterdir() if any(path.glob("*.safetensors"))):
        cls = class_of(kind, folder.name)
        module, stock = read(cls, folder, dtype), cls.from_pretrained(folder, dtype=dtype)
        assert_same(module, stock)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_what_must_stay_in_float32_does_where_the_files_hold_bfloat16(part):
    folder = part("t2v", "transformer")
    (path,) = folder.glob("*.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    module = read(WanTransformer3DModel, folder, torch.bfloat16)
    assert module.scale_shift_table.dtype == torch.float32
    assert module.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert_same(module, WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16))


def test_shards_are_read_by_their_index_alone(part):
    folder = part("t2v", "transformer")
    module = read(WanTransformer3DModel, folder)
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    module.save_pretrained(folder, max_shard_size="20KB")
    save_file({"stranger": torch.zeros(1)}, folder / "another.safetensors")
    assert len(weights.shards(folder)) > 1
    assert_same(read(WanTransformer3DModel, folder), module)


@pytest.mark.parametrize("stored", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_token_embedding_is_one_tensor_whichever_name_it_has_in_the_file(stored, part):
    folder = part("t2v", "text_encoder")
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    embedding = state.pop("shared.weight")
    state.pop("encoder.embed_tokens.weight", None)
    save_file(state | {stored: embedding}, path, metadata={"format": "pt"})
    module = read(UMT5EncoderModel, folder)
    assert module.shared.weight is module.encoder.embed_tokens.weight
    assert torch.equal(module.shared.weight, embedding)


def test_an_image_encoder_of_the_official_files_has_another_prefix(part):
    folder = part("i2v", "image_encoder")
    before = read(CLIPVisionModel, folder)
    (path,) = folder.glob("*.safetensors")
    state = {f"vision_model.{key.removeprefix('vision_model.')}": tensor for key, tensor in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    assert_same(read(CLIPVisionModel, folder), before)


def test_on_a_cpu_weights_are_the_files_own_pages(tiny_folder):
    folder = tiny_folder("t2v") / "vae"
    module = read(AutoencoderKLWan, folder)
    (path,) = folder.glob("*.safetensors")
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(path))]
    spans = [(int(begin, 16), int(end, 16)) for begin, end in ranges]
    assert all(any(begin <= one.data_ptr() < end for begin, end in spans) for one in module.parameters())


def test_a_wrong_shape_is_named_with_both_shapes(tiny_folder, tmp_path, recorder, info_of):
    folder = shutil.copytree(tiny_folder("t2v"), tmp_path / "copy")
    (path,) = (folder / "transformer").glob("*.safetensors")
    save_file(load_file(path) | {"proj_out.bias": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadFailed, match=r"transformer: proj_out\.bias has the shape \(3,\); by the configuration it is"):
        load(info_of(folder), recorder())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_sent_piece_by_piece_is_what_a_cpu_maps(dtype, tiny_folder, monkeypatch):
    monkeypatch.setattr(weights, "_PIECE_BYTES", 64)
    stock = read(WanTransformer3DModel, tiny_folder("t2v") / "transformer", dtype)
    with ExitStack() as files:
        stored = dict(weights._stored(tiny_folder("t2v") / "transformer", files))
        sent = {key: torch.full_like(parameter, torch.nan) for key, parameter in stock.named_parameters()}
        weights.send([(stored[key], sent[key]) for key in sent], CPU)
    assert all(torch.equal(sent[key], parameter) for key, parameter in stock.named_parameters())


def test_a_file_that_became_shorter_while_it_was_read_is_an_error(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(OSError, match="ends at byte 5"):
        weights._read(file.fileno(), torch.empty(4, dtype=torch.uint8), 3)
