"""The official checkpoints are offered where they are found, with the wire contract's defaults."""

from __future__ import annotations

import re

import pytest
from wan_host_wan21.catalogue import count_parameters, offered_models, weights_mib
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


def test_what_a_text_checkpoint_cannot_do_is_refused_with_the_checkpoint_that_can(tiny_folder, tmp_path):
    (tmp_path / "wan2.1-t2v-1.3b").symlink_to(tiny_folder("t2v"))
    (tmp_path / "wan2.1-vace-1.3b").symlink_to(tiny_folder("vace"))
    vace, plain = offered_models(Wan21Settings(models_dir=tmp_path))
    assert "Wan-AI/Wan2.1-VACE-1.3B-diffusers can: `wan-host models pull wan2.1-vace-1.3b`" in plain.advice
    assert vace.advice == "", "it can do everything"
    assert (vace.max_subject_references, plain.max_subject_references) == (4, 0)
    assert (vace.loras, plain.loras) == (True, True)


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
    assert model.vram_mib == 0, "tiny"


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


def table(tmp_path, monkeypatch, text):
    file = tmp_path / "wan-host.toml"
    file.write_text(text)
    monkeypatch.setenv("WAN_HOST_CONFIG", str(file))
    return {model.name: model for model in offered_models(read_settings())}


def test_a_table_offers_more_models(tiny_folder, tmp_path, monkeypatch):
    models = tmp_path / "data" / "models"
    models.mkdir(parents=True)
    (models / "wan2.1-vace-1.3b").symlink_to(tiny_folder("vace"))
    (models / "anime").symlink_to(tiny_folder("t2v"))
    text = """
        [wan21.models.anime]
        path = "anime"
        description = "Drawn pictures"
        [wan21.models.anime.defaults]
        width = 512
        high_steps = 30
        sample_solver = "unipc"
        [wan21.models.sketch]
        base = "wan2.1-vace-1.3b"
        adapters = [{ name = "sketch", scale = 0.8 }]
    """
    found = table(tmp_path, monkeypatch, text)
    assert list(found) == ["wan2.1-vace-1.3b", "anime", "sketch"]
    anime, sketch = found["anime"], found["sketch"]
    assert anime.description.startswith("Drawn pictures (T2V")
    assert anime.job_types["video_high"].width == 512
    assert anime.job_types["video_high"].num_inference_steps == 30
    assert anime.job_types["image_fast"].sample_solver == "unipc"
    assert anime.job_types["video_fast"].frames == 83
    assert sketch.path == found["wan2.1-vace-1.3b"].path
    assert sketch.options == {"adapters": (("sketch", 0.8),)}
    assert sketch.max_subject_references == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('path = "nowhere"', "is no folder"),
        ('path = "~nobody-of-this-name/model"', "is no path: Could not determine home directory"),
        ('base = "nothing"', "its base nothing is not there; there are none"),
        ('path = "me/model@main"', "not pinned"),
        (f'path = "me/model@{"0" * 40}"', "models pull"),
    ],
)
def test_a_row_that_cannot_be_used_is_logged_and_left_out(row, message, tmp_path, monkeypatch, caplog):
    assert table(tmp_path, monkeypatch, f"[wan21.models.mine]\n{row}\n") == {}
    assert message in caplog.text


def test_a_wrong_row_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"^WAN_HOST_WAN21_MODELS\.mine\.defaults\.width: 500 is not allowed"):
        table(tmp_path, monkeypatch, '[wan21.models.mine]\npath = "x"\ndefaults = { width = 500 }\n')
    with pytest.raises(SettingsError, match="give either path or base"):
        table(tmp_path, monkeypatch, "[wan21.models.mine]\n")


@pytest.mark.parametrize(
    "default",
    [
        "width = 4112",
        "height = 4112",
        "frames = 84",
        "fps = 30",
        "fast_steps = 201",
        "high_guidance = 31",
        "sample_shift = inf",
        "fast_guidance = nan",
    ],
)
def test_a_default_that_no_job_may_ask_for_is_refused_at_the_start(default, tmp_path, monkeypatch):
    name = default.partition(" ")[0]
    with pytest.raises(SettingsError, match=rf"^WAN_HOST_WAN21_MODELS\.mine\.defaults\.{name}: "):
        table(tmp_path, monkeypatch, f'[wan21.models.mine]\npath = "x"\ndefaults = {{ {default} }}\n')


@pytest.mark.parametrize("limit", ["inf", "nan", "0"])
def test_a_memory_limit_is_a_number(limit, monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_VRAM_LIMIT_GB", limit)
    with pytest.raises(SettingsError, match="VRAM_LIMIT_GB"):
        read_settings()


def test_weights_are_counted_from_the_files_headers(tiny_folder, vace):
    (file,) = (tiny_folder("vace") / "transformer").glob("*.safetensors")
    assert count_parameters(file) == sum(parameter.numel() for parameter in vace.components.transformer.parameters())
    assert count_parameters(file.with_name("nothing")) == 0
    assert weights_mib(tiny_folder("vace")) == 0


def test_a_model_takes_two_bytes_a_parameter_and_four_in_the_vae(vace, tiny_folder, monkeypatch):
    monkeypatch.setattr("wan_host_wan21.catalogue._MIB", 1)
    counts = {
        name: sum(parameter.numel() for parameter in getattr(vace.components, name).parameters())
        for name in ("transformer", "text_encoder", "vae")
    }
    assert weights_mib(tiny_folder("vace")) == 2 * (counts["transformer"] + counts["text_encoder"]) + 4 * counts["vae"]


@pytest.mark.parametrize("name", ["models_dir", "loras_dir"])
def test_a_folder_may_begin_with_the_home_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(f"WAN_HOST_WAN21_{name.upper()}", "~/mine")
    assert getattr(read_settings(), name) == tmp_path / "mine"


@pytest.mark.parametrize("name", ["data_dir", "models_dir", "loras_dir", "turbo"])
def test_a_path_below_nobodys_home_is_one_clear_line(name, monkeypatch):
    monkeypatch.setenv(f"WAN_HOST_WAN21_{name.upper()}", "~nobody-of-this-name/mine")
    message = f"WAN_HOST_WAN21_{name.upper()}: '~nobody-of-this-name/mine' is not allowed; Could not determine home directory."
    with pytest.raises(SettingsError, match=rf"^{re.escape(message)}$"):
        _ = read_settings().turbo_path


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
        (25).to_bytes(8, "little") + b'{"a":{"shape":[1e400,0]}}',
    ],
    ids=["length", "list", "nested", "endless"],
)
def test_a_file_with_a_damaged_header_has_no_known_size(content, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(content)
    assert count_parameters(tmp_path / "damaged.safetensors") == 0


def test_the_environment_gives_tables_as_json_and_lists_by_commas(monkeypatch):
    monkeypatch.setenv("WAN_HOST_WAN21_MODELS", '{"mine": {"path": "/m", "adapters": [{"name": "a"}]}}')
    monkeypatch.setenv("WAN_HOST_WAN21_LORA_REPOS", "me/*, you/lora")
    monkeypatch.setenv("WAN_HOST_VRAM_LIMIT_GB", "30")
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "text_off")
    settings = read_settings()
    assert settings.models["mine"].adapters[0].scale == 1.0
    assert settings.lora_repos == ("me/*", "you/lora")
    assert (settings.vram_limit_gb, settings.placement) == (30, "text_off")
    monkeypatch.setenv("WAN_HOST_WAN21_PLACEMENT", "somewhere")
    with pytest.raises(SettingsError, match="WAN_HOST_WAN21_PLACEMENT: 'somewhere' is not allowed"):
        read_settings()
