import pytest
from wan_host_qwen_enhance.settings import read_settings

from wan_host import SettingsError


def test_the_same_prompt_gives_the_same_result_by_default():
    assert read_settings().temperature == 0


def test_the_environment_stands_over_the_plugin_s_table_of_the_file(monkeypatch, tmp_path):
    (tmp_path / "wan-host.toml").write_text('[qwen_enhance]\ntimeout = 7\ndtype = "bfloat16"\n')
    monkeypatch.setenv("WAN_HOST_QWEN_ENHANCE_TIMEOUT", "9")
    assert (read_settings().timeout, read_settings().dtype) == (9, "bfloat16")


def test_of_the_file_s_top_level_only_the_folders_are_read(monkeypatch, tmp_path):
    monkeypatch.delenv("WAN_HOST_DATA_DIR")
    (tmp_path / "wan-host.toml").write_text('models_dir = "/models"\ndata_dir = "/data"\npath = "nonsense"\n')
    settings = read_settings()
    assert (str(settings.models_path), str(settings.data_dir), settings.path) == ("/models", "/data", "")


def test_models_are_looked_for_in_the_data_folder_by_default(tmp_path):
    assert read_settings().models_path == tmp_path / "data" / "models"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DTYPE", "int4"),
        ("DEVICE", "gpu"),
        ("TEMPERATURE", "-1"),
        ("TIMEOUT", "0"),
        ("MAX_NEW_TOKENS", "5"),
        ("VIDEO_INSTRUCTIONS", "/nowhere.txt"),
        ("PROMPTING", "magic"),
        ("VIDEO_INSTRUCTIONS", "~no-such-user/a"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"WAN_HOST_QWEN_ENHANCE_{name}", value)
    with pytest.raises(SettingsError, match=rf"^WAN_HOST_QWEN_ENHANCE_{name}: '.*{value}' is not allowed; .+$"):
        read_settings()


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "wan-host.toml").write_text("path = = 1")
    with pytest.raises(SettingsError, match=r"wan-host\.toml"):
        read_settings()
