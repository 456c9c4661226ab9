"""Settings of plugins: the plugin's variables over its table of the host's file."""

import pytest
from pydantic import AliasChoices, Field, SecretStr

from wan_host import PluginSettings, SettingsError


class Example(PluginSettings, env_prefix="WAN_HOST_EXAMPLE_"):
    size: int = 3
    name: str = "plain"
    example_key: SecretStr | None = Field(default=None, validation_alias=AliasChoices("EXAMPLE_KEY", "example_key"))


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "wan-host.toml"
    monkeypatch.setenv("WAN_HOST_CONFIG", str(path))
    return path


def test_without_a_file_and_variables_the_defaults_stand(file):
    assert Example.read().size == 3


def test_a_file_without_the_plugins_table_changes_nothing(file):
    file.write_text('model = "x"\n[other]\nsize = 7\n')
    assert Example.read().size == 3


def test_the_environment_stands_over_the_table(file, monkeypatch):
    file.write_text('[example]\nsize = 7\nname = "table"\n')
    monkeypatch.setenv("WAN_HOST_EXAMPLE_SIZE", "9")
    monkeypatch.setenv("WAN_HOST_EXAMPLE_NAME", "")
    settings = Example.read()
    assert (settings.size, settings.name) == (9, "table")


def test_an_alias_is_read_by_its_own_name_and_from_the_top_level(file, monkeypatch):
    file.write_text('example_key = "from the file"\nsize = 8\n')
    settings = Example.read()
    assert settings.example_key.get_secret_value() == "from the file"
    assert settings.size == 3
    monkeypatch.setenv("EXAMPLE_KEY", "from the environment")
    assert Example.read().example_key.get_secret_value() == "from the environment"


def test_a_wrong_value_is_one_line_that_names_the_variable(file, monkeypatch):
    monkeypatch.setenv("WAN_HOST_EXAMPLE_SIZE", "many")
    with pytest.raises(SettingsError, match=r"^WAN_HOST_EXAMPLE_SIZE: 'many' is not allowed; Input should be a valid integer"):
        Example.read()


def test_a_table_that_is_none_and_a_file_that_is_no_toml_are_named(file):
    file.write_text("example = 3\n")
    with pytest.raises(SettingsError, match=r"wan-host\.toml: example: 3 is not allowed; it must be a table"):
        Example.read()
    file.write_text("[example")
    with pytest.raises(SettingsError, match=r"wan-host\.toml: "):
        Example.read()
