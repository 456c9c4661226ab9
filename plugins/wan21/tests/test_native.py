"""Wan's native layout, made here by the original repository's names, becomes the same model in the diffusers layout."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch  # noqa: TID253  # a test of torch code
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from wan_host_wan21.checkpoint import Kind, recognise
from wan_host_wan21.commands.convert import import_
from wan_host_wan21.fake import TINY, write_checkpoint
from wan_host_wan21.model import load
from wan_host_wan21.shards import ShardWriter

# Wan's VAE as it is, but narrow: the names of its blocks depend on the multipliers.
NARROW = replace(TINY, name="narrow", vae_base=4, vae_multipliers=(1, 2, 4, 4), vae_res_blocks=2)

TRANSFORMER = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
    (r"\.norm2\.", ".norm3."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
TEXT = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"blocks.\1.norm1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"blocks.\1.norm2."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.", r"blocks.\1.pos_embedding.embedding."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.", r"blocks.\1.ffn.gate.0."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.", r"blocks.\1.ffn.fc1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.", r"blocks.\1.ffn.fc2."),
)
RESIDUAL = ((r"\.norm1\.", ".residual.0."), (r"\.conv1\.", ".residual.2."), (r"\.norm2\.", ".residual.3."),
            (r"\.conv2\.", ".residual.6."), (r"\.conv_shortcut\.", ".shortcut."))  # fmt: skip
VAE = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
)


def renamed(key: str, rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def vae_name(key: str) -> str:
    """Three residual blocks and an upsampler stand in a row in the original's decoder."""
    resnet = re.match(r"^(.*)\.mid_block\.resnets\.(\d)(\..*)$", key)
    if resnet:
        return renamed(f"{resnet[1]}.middle.{2 * int(resnet[2])}{resnet[3]}", RESIDUAL)
    up = re.match(r"^decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)(\..*)$", key)
    if up:
        place = 4 * int(up[1]) + (int(up[3]) if up[2] == "resnets" else 3)
        return renamed(f"decoder.upsamples.{place}{up[4]}", RESIDUAL)
    return renamed(key, VAE if "down_blocks" not in key else (*VAE, *RESIDUAL))


@pytest.fixture(scope="module", params=["t2v", "vace"])
def folders(request, tmp_path_factory):
    """Return a diffusers folder and the same model in Wan's native layout."""
    source, native = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("native")
    write_checkpoint(source, Kind(request.param), NARROW, progress=lambda _: None)
    state = load_file(source / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({renamed(key, TRANSFORMER): value for key, value in state.items()}, native / "diffusion_pytorch_model.safetensors")
    text = load_file(source / "text_encoder" / "model.safetensors")
    text = {renamed(key, TEXT): value.bfloat16() for key, value in text.items() if "embed_tokens" not in key}
    torch.save(text, native / "models_t5_umt5-xxl-enc-bf16.pth")
    vae = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({vae_name(key): value for key, value in vae.items()}, native / "Wan2.1_VAE.pth")
    shutil.copytree(source / "tokenizer", native / "google" / "umt5-xxl")
    (native / "config.json").write_text(json.dumps({"model_type": request.param, "dim": 24, "num_heads": 2, "num_layers": 2}))
    return source, native


@pytest.fixture
def convert(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WAN_HOST_WAN21_MODELS_DIR", raising=False)
    return lambda *arguments: CliRunner().invoke(import_, [str(argument) for argument in arguments])


def test_the_keys_made_here_are_the_originals(folders):
    """Spot checks against wan/modules/{model,vae,t5}.py, so that the test cannot agree with itself alone."""
    native = folders[1]
    transformer = load_file(native / "diffusion_pytorch_model.safetensors")
    assert {
        "patch_embedding.weight",
        "blocks.0.self_attn.norm_q.weight",
        "blocks.1.cross_attn.o.bias",
        "blocks.0.modulation",
        "blocks.0.norm3.weight",
        "head.modulation",
        "head.head.weight",
        "text_embedding.2.bias",
    } <= transformer.keys()
    vae = torch.load(native / "Wan2.1_VAE.pth", weights_only=True)
    assert {
        "encoder.conv1.weight",
        "encoder.downsamples.3.residual.2.weight",
        "encoder.downsamples.3.shortcut.weight",
        "encoder.downsamples.5.time_conv.weight",
        "encoder.middle.1.to_qkv.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.14.residual.6.bias",
        "decoder.upsamples.3.resample.1.weight",
        "decoder.head.2.weight",
        "conv2.bias",
    } <= vae.keys()


def test_importing_gives_the_same_model_in_bfloat16(folders, convert, tmp_path, recorder, info_of):
    source, native = folders
    done = convert(native, "--name", "mine")
    assert done.exit_code == 0, done.output
    target = tmp_path / "models" / "mine"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]
    assert recognise(target).kind == recognise(source).kind
    assert not recognise(target).random_weights
    ours, theirs = (load(info_of(folder), recorder()).components for folder in (target, source))
    for mine, original in zip(ours.modules(), theirs.modules(), strict=True):
        expected = original.state_dict()
        for key, value in mine.state_dict().items():
            assert torch.allclose(value, expected[key], rtol=2**-8, atol=1e-30), key
    written = load_file(target / "transformer" / "diffusion_pytorch_model.safetensors")
    kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
    for key, value in written.items():
        assert value.dtype == (torch.float32 if any(mark in key for mark in kept) else torch.bfloat16), key
    assert ours.tokenizer("a cat").input_ids == theirs.tokenizer("a cat").input_ids


def test_the_name_follows_from_kind_and_size_and_nothing_is_overwritten(folders, convert, tmp_path):
    kind = recognise(folders[0]).kind
    assert convert(folders[1]).exit_code == 0
    assert (tmp_path / "models" / f"wan2.1-{kind}-1.3b" / "model_index.json").is_file()
    again = convert(folders[1])
    assert again.exit_code == 1
    assert "exists already" in again.output
    assert convert(folders[1], "--replace").exit_code == 0


@pytest.mark.parametrize("problem", ["missing", "unknown", "shape", "no vae", "no tokenizer", "i2v", "corrupt"])
def test_what_is_wrong_is_named_before_anything_is_written(problem, folders, convert, tmp_path):
    native = shutil.copytree(folders[1], tmp_path / "native")
    weights = native / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    expected = {
        "missing": "1 missing keys, such as blocks.0.attn1.to_q.weight",
        "unknown": "1 unknown keys, such as blocks.0.extra",
        "shape": "blocks.0.attn1.to_q.weight is (24, 23), expected (24, 24)",
        "no vae": "Wan2.1_VAE.pth is missing",
        "no tokenizer": "google/umt5-xxl (the tokenizer) is missing",
        "i2v": "is an image-to-video checkpoint",
        "corrupt": "models_t5_umt5-xxl-enc-bf16.pth cannot be read",
    }[problem]
    if problem == "missing":
        del state["blocks.0.self_attn.q.weight"]
    elif problem == "unknown":
        state["blocks.0.extra"] = torch.zeros(1)
    elif problem == "shape":
        state["blocks.0.self_attn.q.weight"] = torch.zeros(24, 23)
    elif problem == "i2v":
        state["img_emb.proj.0.weight"] = torch.zeros(1)
    elif problem == "no vae":
        (native / "Wan2.1_VAE.pth").unlink()
    elif problem == "no tokenizer":
        shutil.rmtree(native / "google")
    else:
        (native / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"nothing")
    save_file(state, weights)
    done = convert(native)
    assert done.exit_code == 1
    assert expected in done.output.replace("\n", "")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("problem", ["heads", "index", "block", "flat"])
def test_what_no_checkpoint_holds_is_one_clear_line(problem, folders, convert, tmp_path):
    native = shutil.copytree(folders[1], tmp_path / "native")
    weights = native / "diffusion_pytorch_model.safetensors"
    if problem == "heads":
        (native / "config.json").write_text(json.dumps({"num_heads": 0}))
    elif problem == "index":
        (native / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    else:
        state = load_file(weights)
        state |= (
            {"blocks.x.self_attn.q.weight": torch.zeros(1)} if problem == "block" else {"blocks.0.ffn.0.weight": torch.zeros(())}
        )
        save_file(state, weights)
    done = convert(native)
    assert done.exit_code == 1
    assert "holds what no checkpoint of Wan holds" in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_native_folder_is_not_replaced_by_its_own_conversion(*, checkpoint, folders, convert, tmp_path):
    """The plugin names the command for a native folder in the models folder, where the new one would have the same name."""
    native = shutil.copytree(folders[1], tmp_path / "models" / f"wan2.1-{recognise(folders[0]).kind}-1.3b")
    if checkpoint:  # the originals may lie beside what was made of them, or below it
        (native / "model_index.json").write_text("{}")
        (native.parent / "model_index.json").write_text("{}")
    before = sorted(path.name for path in native.iterdir())
    for output in ([], ["--output", native], ["--output", tmp_path / "models"]):
        for more in ([], ["--replace"]):
            done = convert(native, *output, *more)
            assert done.exit_code == 1
            assert f"is not written, as {native} is read from it; choose another --output" in " ".join(done.output.split())
    assert sorted(path.name for path in native.iterdir()) == before
    assert convert(native, "--name", "mine").exit_code == 0


def test_large_weights_are_written_in_shards(tmp_path):
    writer = ShardWriter(tmp_path, "model", limit=100)
    tensors = {f"k{index}": torch.full((20,), float(index)) for index in range(3)}
    for key, tensor in tensors.items():
        writer.add(key, tensor)
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["k2"] == "model-00003-of-00003.safetensors"
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    read = {}
    for path in tmp_path.glob("*.safetensors"):
        read |= load_file(path)
    assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())
