"""Settings: environment over the file, wrong values in one line, secrets in none."""

import json
import os
import stat

import pytest

from wan_host.errors import SettingsError
from wan_host.settings import load_settings, unknown_settings

SECRETS = ("UPSTASH_REDIS_REST_TOKEN", "JOB_CALLBACK_SECRET", "WAN_WORKER_API_KEY")


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """No variables of this machine, no file."""
    for name in list(os.environ):
        if name.startswith(("WAN_HOST_", "UPSTASH_", "SUPABASE_", "JOB_CALLBACK", "WAN_WORKER", "RUNPOD_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def problem():
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(tmp_path, text):
    (tmp_path / "wan-host.toml").write_text(text, encoding="utf-8")


def test_without_any_setting_everything_has_a_value():
    settings = load_settings()
    assert settings.data_dir.is_absolute()
    assert settings.queue_name == "wan_queue"
    assert settings.bucket == "workspace-temp"
    assert (settings.port, settings.publisher, settings.model) == (7860, "local", None)
    assert settings.models_path == settings.data_dir / "models"
    assert settings.outputs_path == settings.data_dir / "outputs"


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [
        ("UPSTASH_REDIS_REST_URL", "upstash_redis_rest_url", "https://x.upstash.io"),
        ("UPSTASH_REDIS_REST_TOKEN", "upstash_redis_rest_token", "t0ken"),
        ("JOB_CALLBACK_SECRET", "job_callback_secret", "s3cret"),
        ("WAN_WORKER_API_KEY", "wan_worker_api_key", "k3y"),
        ("RUNPOD_POD_ID", "runpod_pod_id", "abc123"),
        ("WAN_HOST_QUEUE_URL", "queue_url", "rediss://:pw@host:1/0"),
        ("WAN_HOST_CALLBACK_URL", "callback_url", "https://receiver/x"),
        ("WAN_HOST_WORKER_ID", "worker_id", "wan_worker_001"),
        ("WAN_HOST_VRAM_LIMIT_GB", "vram_limit_gb", 30.0),
        ("WAN_HOST_LOG_PROMPTS", "log_prompts", True),
    ],
)
def test_a_variable_sets_its_field_and_counts_as_not_set_when_it_is_empty(bare, variable, field, value):
    bare.setenv(variable, str(value))
    found = getattr(load_settings(), field)
    assert (found.get_secret_value() if hasattr(found, "get_secret_value") else found) == value
    bare.setenv(variable, "")
    assert getattr(load_settings(), field) != value


@pytest.mark.parametrize("variable", ["WAN_HOST_DATA_DIR", "WAN_HOST_MODELS_DIR"])
def test_a_home_that_nobody_has_is_one_clear_line(bare, variable):
    bare.setenv(variable, "~no-such-user/a")
    assert "home directory" in problem()
    assert variable in problem()


def test_the_environment_wins_over_the_file(bare, tmp_path):
    write(tmp_path, 'port = 1\nmodel = "from-file"\nwan_worker_api_key = "k"\nrequired_plugins = ["a", "b"]\n[wan21]\nx = 1\n')
    bare.setenv("WAN_HOST_PORT", "2")
    settings = load_settings()
    assert (settings.port, settings.model, settings.required_plugins) == (2, "from-file", ("a", "b"))
    assert settings.wan_worker_api_key.get_secret_value() == "k"


@pytest.mark.parametrize("blank", ["", " ", " \t "])
@pytest.mark.parametrize("name", SECRETS)
def test_a_blank_secret_is_none_wherever_it_stands(bare, tmp_path, name, blank):
    write(tmp_path, f"{name.lower()} = {json.dumps(blank)}\n")
    from_file = load_settings()
    assert (getattr(from_file, name.lower()), from_file.bind_host) == (None, "127.0.0.1")
    write(tmp_path, "")
    bare.setenv(name, blank)
    from_environment = load_settings()
    assert (getattr(from_environment, name.lower()), from_environment.bind_host) == (None, "127.0.0.1")


def test_another_file_can_be_named_and_must_be_there(bare, tmp_path):
    (tmp_path / "other.toml").write_text("port = 5\n")
    bare.setenv("WAN_HOST_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().port == 5
    bare.setenv("WAN_HOST_CONFIG", str(tmp_path / "gone.toml"))
    assert problem().endswith("gone.toml' is not a file")


def test_lists_are_separated_by_commas_in_the_environment(bare):
    bare.setenv("WAN_HOST_REQUIRED_PLUGINS", " wan21 ,supabase,, ")
    assert load_settings().required_plugins == ("wan21", "supabase")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WAN_HOST_PORT", "http", "WAN_HOST_PORT: 'http' is not allowed; Input should be a valid integer"),
        ("WAN_HOST_PORT", "70000", "WAN_HOST_PORT: '70000' is not allowed; "),
        ("WAN_HOST_WORKER_ID", "a b", "WAN_HOST_WORKER_ID: 'a b' is not allowed; "),
        ("WAN_HOST_WORKER_ID", "a\n", "WAN_HOST_WORKER_ID: 'a\\n' is not allowed; "),
        ("WAN_HOST_LOG_FORMAT", "xml", "Input should be 'text' or 'json'"),
        ("WAN_HOST_ENHANCE_FAILURE", "x", "Input should be 'pass' or 'fail'"),
        ("WAN_HOST_LEASE_SECONDS", "1", "greater than or equal to 3"),
        ("WAN_HOST_VRAM_LIMIT_GB", "0", "greater than 0"),
        ("WAN_HOST_BUCKET", "../x", "WAN_HOST_BUCKET: '../x' is not allowed; "),
        ("WAN_HOST_QUEUE_URL", "http://x", "WAN_HOST_QUEUE_URL: (hidden) is not allowed; must start with redis://"),
        ("WAN_HOST_CALLBACK_URL", "ftp://x", "WAN_HOST_CALLBACK_URL: (hidden) is not allowed; must start with http://"),
        ("UPSTASH_REDIS_REST_URL", "x.upstash.io", "UPSTASH_REDIS_REST_URL: (hidden) is not allowed; must start with http://"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_variable_the_value_and_what_is_allowed(bare, variable, value, words):
    bare.setenv(variable, value)
    message = problem()
    assert message.startswith(f"{variable}: ")
    assert words in message


def test_several_wrong_values_are_named_at_once(bare):
    bare.setenv("WAN_HOST_PORT", "x")
    bare.setenv("WAN_HOST_LOG_LEVEL", "loud")
    message = problem()
    assert "WAN_HOST_PORT: " in message
    assert "WAN_HOST_LOG_LEVEL: " in message


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_wrong_type_is_never_shown(tmp_path, name):
    write(tmp_path, f"{name.lower()} = 31415926\n")
    message = problem()
    assert message.startswith(f"{name}: (hidden) is not allowed; ")
    assert "31415926" not in message


def test_neither_secrets_nor_addresses_with_passwords_are_in_the_repr(bare):
    for name in SECRETS:
        bare.setenv(name, "hunter2")
    bare.setenv("WAN_HOST_QUEUE_URL", "redis://:hunter2@host")
    bare.setenv("WAN_HOST_CALLBACK_URL", "https://u:hunter2@host/?token=hunter2")
    assert "hunter2" not in repr(load_settings()) + str(load_settings())


def test_a_file_that_is_no_toml_is_named(tmp_path):
    write(tmp_path, "port == 1\nsecret_line = 'hunter2'\n")
    message = problem()
    assert message.startswith("wan-host.toml: ")
    assert "hunter2" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    write(tmp_path, "port = 1\n")
    (tmp_path / "wan-host.toml").chmod(stat.S_IWUSR)
    assert problem().startswith("wan-host.toml: ")


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "wan-host.toml").write_bytes("model = 'ü'".encode("latin-1"))
    assert problem().startswith("wan-host.toml: ")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_the_address_is_loopback_unless_a_key_protects_it_or_a_setting_says_so(bare):
    assert load_settings().bind_host == "127.0.0.1"
    bare.setenv("WAN_WORKER_API_KEY", "")
    assert load_settings().bind_host == "127.0.0.1"
    bare.setenv("WAN_WORKER_API_KEY", "k")
    assert load_settings().bind_host == "0.0.0.0"
    bare.setenv("WAN_HOST_HOST", "10.0.0.1")
    assert load_settings().bind_host == "10.0.0.1"


def test_the_public_address_is_the_setting_else_the_pods_else_unknown(bare):
    assert load_settings().url == ""
    bare.setenv("RUNPOD_POD_ID", "pod1")
    bare.setenv("WAN_HOST_PORT", "7861")
    assert load_settings().url == "https://pod1-7861.proxy.runpod.net"
    bare.setenv("WAN_HOST_PUBLIC_URL", "https://my.host/")
    assert load_settings().url == "https://my.host"


def test_a_home_folder_is_expanded(bare, tmp_path):
    bare.setenv("HOME", str(tmp_path))
    bare.setenv("WAN_HOST_DATA_DIR", "~/data")
    assert load_settings().data_dir == tmp_path / "data"


def test_the_workers_own_name_is_allowed_whatever_the_machine_is_called(bare):
    bare.setattr("socket.gethostname", lambda: "Bob's Mac.local " + "x" * 200)
    name = load_settings().worker_id
    assert name.startswith("Bob-s-Mac.local-x")
    bare.setenv("WAN_HOST_WORKER_ID", name)
    assert load_settings().worker_id == name


def test_a_variable_that_nobody_reads_is_noticed_with_the_one_that_was_meant(bare):
    bare.setenv("WAN_HOST_QUEUE_ULR", "redis://:pw@x")
    assert unknown_settings([]) == [
        "WAN_HOST_QUEUE_ULR is no setting of the host or of an installed plugin (did you mean WAN_HOST_QUEUE_URL?)"
    ]


def test_an_entry_of_the_file_that_nobody_reads_is_noticed(tmp_path):
    write(tmp_path, 'prot = 1\nport = 2\nsupabase_url = "x"\nwan_worker_api_key = "k"\n[wan21]\nanything = 1\n')
    assert unknown_settings(["supabase"]) == [
        "wan-host.toml: prot is no setting of the host or of an installed plugin (did you mean WAN_HOST_PORT?)"
    ]


def test_variables_of_installed_plugins_are_theirs(bare):
    for name in ("WAN_HOST_WAN21_PATHS", "WAN_HOST_MY_PLUGIN_X", "WAN_HOST_CONFIG", "WAN_HOST_PORT"):
        bare.setenv(name, "")
    assert unknown_settings(["wan21", "my-plugin"]) == []
    assert unknown_settings(["wan21"]) == ["WAN_HOST_MY_PLUGIN_X is no setting of the host or of an installed plugin"]


def test_deadlines_by_job_type_come_as_json_or_as_a_table(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("WAN_HOST_JOB_DEADLINES", '{"image_fast": 120, "video_high": 900.5}')
    settings = load_settings()
    assert (settings.deadline_of("image_fast"), settings.deadline_of("video_fast")) == (120, 3600)
    monkeypatch.delenv("WAN_HOST_JOB_DEADLINES")
    (tmp_path / "own.toml").write_text("[job_deadlines]\nimage_fast = 60\n")
    monkeypatch.setenv("WAN_HOST_CONFIG", str(tmp_path / "own.toml"))
    assert load_settings().deadline_of("image_fast") == 60


@pytest.mark.parametrize("value", ["120", "image_fast=120", '{"image_fast": 0}', '{"image_fast": "soon"}', "[]"])
def test_wrong_deadlines_are_refused_by_name(bare, monkeypatch, value):
    monkeypatch.setenv("WAN_HOST_JOB_DEADLINES", value)
    with pytest.raises(SettingsError, match="WAN_HOST_JOB_DEADLINES"):
        load_settings()
