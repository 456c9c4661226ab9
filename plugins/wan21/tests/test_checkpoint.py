"""A folder is recognised by its small files, and what is wrong with it is named."""

from __future__ import annotations

import json
import shutil

import pytest
from wan_host_wan21.checkpoint import Kind, recognise
from wan_host_wan21.model import load

from wan_host import ModelLoadFailed


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """Return a copy of the tiny T2V checkpoint that a test may break."""
    return shutil.copytree(tiny_folder("t2v"), tmp_path / "copy")


def configure(folder, **values):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", ["t2v", "vace"])
def test_the_official_layouts_are_recognised(kind, tiny_folder):
    found = recognise(tiny_folder(kind))
    assert (found.kind, found.heads, found.random_weights) == (Kind(kind), 2, True)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelLoadFailed, match="is no folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ModelLoadFailed, match=r"has no model_index\.json"):
        recognise(tmp_path)


def test_wans_native_layout_is_recognised_and_the_command_named(tmp_path):
    (tmp_path / "Wan2.1_VAE.pth").touch()
    with pytest.raises(ModelLoadFailed, match="wan-host models import"):
        recognise(tmp_path)


def test_missing_parts_and_shards_are_named(copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadFailed, match="model-00001-of-00002"):
        recognise(copy)
    (copy / "text_encoder" / "model.safetensors.index.json").unlink()
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="no safetensors"):
        recognise(copy)
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelLoadFailed, match="vae missing"):
        recognise(copy)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {"weight_map": {"a": []}}]
)
def test_an_index_of_shards_that_names_none_is_named(index, copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadFailed, match=r"safetensors\.index\.json does not say which file holds which key"):
        recognise(copy)


@pytest.mark.parametrize("heads", [None, "x", [2], {}])
def test_a_number_that_is_none_is_named(heads, copy):
    configure(copy, num_attention_heads=heads)
    with pytest.raises(ModelLoadFailed, match=r"transformer: num_attention_heads is .*; it must be a whole number"):
        recognise(copy)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_a_corrupt_file_is_named(part, copy, recorder, info_of):
    (weights,) = (copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelLoadFailed, match=f"{part} could not be loaded"):
        load(info_of(copy), recorder())


def test_weights_that_do_not_fit_the_configuration_are_refused(copy, recorder, info_of):
    configure(copy, num_layers=3)
    with pytest.raises(ModelLoadFailed, match=r"missing keys, such as blocks\.2"):
        load(info_of(copy), recorder())
    configure(copy, num_layers=1)
    with pytest.raises(ModelLoadFailed, match=r"unexpected keys, such as blocks\.1"):
        load(info_of(copy), recorder())


def test_an_unreadable_configuration_is_named(copy):
    (copy / "transformer" / "config.json").write_text("{")
    with pytest.raises(ModelLoadFailed, match=r"config\.json cannot be read"):
        recognise(copy)


@pytest.mark.parametrize(
    "extra", [{"boundary_ratio": 0.875}, {"expand_timesteps": True}, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}]
)
def test_wan_2_2_is_refused_rather_than_run_wrongly(extra, copy):
    path = copy / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | extra))
    with pytest.raises(ModelLoadFailed, match=r"is a Wan 2\.2 checkpoint"):
        recognise(copy)
    path.write_text(json.dumps(index | {"boundary_ratio": None, "expand_timesteps": False, "transformer_2": [None, None]}))
    assert recognise(copy).kind is Kind.T2V


def test_another_transformer_is_refused(copy):
    configure(copy, _class_name="WanAnimateTransformer3DModel")
    with pytest.raises(ModelLoadFailed, match="has a WanAnimateTransformer3DModel"):
        recognise(copy)
