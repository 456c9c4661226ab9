"""The official checkpoints are offered where they are found, with the wire contract's defaults."""

from __future__ import annotations

import pytest
from wan_host_wan21.catalogue import offered_models
from wan_host_wan21.settings import Wan21Settings, read_settings

from wan_host import SettingsError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in ("WAN_HOST_MODELS_DIR", "WAN_HOST_WAN21_MODELS_DIR", "WAN_HOST_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WAN_HOST_DATA_DIR", str(tmp_path / "data"))


def test_nothing_is_offered_where_nothing_is_found(tmp_path):
    assert list(offered_models(Wan21Settings())) == []
    assert list(offered_models(Wan21Settings(models_dir=tmp_path))) == []


def test_a_checkpoint_in_the_data_folder_is_offered(tiny_folder, tmp_path):
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "data" / "models" / "Wan2.1-T2V-1.3B-Diffusers").symlink_to(tiny_folder("t2v"))
    (model,) = offered_models(read_settings())
    assert (model.name, model.family, model.runner) == ("wan2.1-t2v-1.3b", "wan", "wan21")
    assert model.random_weights
    assert model.image_to_image


def test_the_defaults_are_those_of_the_wire_contract(tiny_folder, tmp_path):
    (tmp_path / "wan2.1-vace-1.3b").symlink_to(tiny_folder("vace"))
    (model,) = offered_models(Wan21Settings(models_dir=tmp_path))
    types = model.job_types
    assert len(types) == 8
    fast, high = types["video_fast"], types["video7b_high_enhanced"]
    assert (fast.width, fast.height, fast.frames, fast.fps) == (480, 832, 83, 24)
    assert (fast.num_inference_steps, fast.guidance_scale, fast.sample_solver) == (25, 6.5, "dpm++")
    assert (high.num_inference_steps, high.guidance_scale, high.enhance) == (50, 7.5, True)
    assert types["image_fast"].frames == 1
    assert 14_000 < model.vram_mib < 17_000


def test_a_wrong_setting_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_PIN_FRAMES", "perhaps")
    with pytest.raises(SettingsError, match=r"^WAN_HOST_WAN21_PIN_FRAMES: 'perhaps' is not allowed; .*$"):
        read_settings()


def test_the_file_is_read_below_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "wan-host.toml"
    file.write_text(f'models_dir = "{tmp_path}/a"\n[wan21]\npin_frames = false\n')
    monkeypatch.setenv("WAN_HOST_CONFIG", str(file))
    assert (read_settings().models_path, read_settings().pin_frames) == (tmp_path / "a", False)
    monkeypatch.setenv("WAN_HOST_WAN21_PIN_FRAMES", "1")
    monkeypatch.setenv("WAN_HOST_MODELS_DIR", str(tmp_path / "b"))
    assert (read_settings().models_path, read_settings().pin_frames) == (tmp_path / "b", True)
