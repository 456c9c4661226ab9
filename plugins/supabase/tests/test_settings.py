"""Settings: the names, where they may stand, and what is said of wrong ones."""

from __future__ import annotations

import pytest
from wan_host_supabase.settings import read_settings

from wan_host import SettingsError


def test_the_services_variables_keep_their_names(monkeypatch):
    for name, value in {
        "SUPABASE_URL": "https://abc.supabase.co/",
        "SUPABASE_SERVICE_ROLE_KEY": " key\n",
        "JOB_CALLBACK_SECRET": "secret",
        "RUNPOD_POD_ID": "pod1",
        "WAN_HOST_BUCKET": "results",
        "WAN_HOST_SUPABASE_TRIES": "7",
        "WAN_HOST_SUPABASE_REFERENCE_BUCKETS": "a, b",
        "WAN_HOST_REFERENCE_MAX_BYTES": "5",
    }.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert (settings.supabase_url, settings.service_key, settings.runpod_pod_id) == ("https://abc.supabase.co", "key", "pod1")
    assert settings.job_callback_secret.get_secret_value() == "secret"
    assert (settings.bucket, settings.tries, settings.reference_max_bytes) == ("results", 7, 5)
    assert settings.reference_buckets == ("a", "b")
    assert settings.missing == ""


def test_the_other_name_of_the_service_key_works(monkeypatch):
    monkeypatch.setenv("SUPABASE_SERVICE_KEY", "key")
    assert read_settings().service_key == "key"


def test_empty_variables_count_as_not_set(monkeypatch):
    monkeypatch.setenv("SUPABASE_URL", "")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "")
    assert read_settings().missing == "SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY"


def test_the_file_holds_the_same_settings_below_the_environment(monkeypatch, tmp_path):
    file = tmp_path / "wan-host.toml"
    file.write_text('bucket = "results"\nsupabase_url = "https://file.supabase.co"\n[supabase]\ntries = 2\ntimeout = 5\n')
    monkeypatch.setenv("WAN_HOST_CONFIG", str(file))
    monkeypatch.setenv("WAN_HOST_SUPABASE_TIMEOUT", "6")
    settings = read_settings()
    assert (settings.bucket, settings.supabase_url) == ("results", "https://file.supabase.co")
    assert (settings.tries, settings.timeout) == (2, 6)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SUPABASE_URL", "abc.supabase.co", "SUPABASE_URL: 'abc.supabase.co' is not allowed; must be the project's address"),
        ("SUPABASE_URL", "https://user:password@abc.supabase.co", "SUPABASE_URL: (hidden) is not allowed"),
        ("SUPABASE_SERVICE_ROLE_KEY", "two words", "SUPABASE_SERVICE_ROLE_KEY: (hidden) is not allowed; must be printable ASCII"),
        ("SUPABASE_SERVICE_KEY", "two words", "(hidden) is not allowed; must be printable ASCII"),
        ("WAN_HOST_SUPABASE_TRIES", "none", "WAN_HOST_SUPABASE_TRIES: 'none' is not allowed"),
        ("WAN_HOST_BUCKET", "a/b", "WAN_HOST_BUCKET: 'a/b' is not allowed"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "password" not in str(caught.value)


def test_secrets_are_not_in_the_repr(settings):
    assert "signature" not in repr(settings())
    assert "callback-secret" not in str(settings())
