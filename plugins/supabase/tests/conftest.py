"""A project on loopback, settings that lead to it, and what hooks are given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from wan_host_supabase.settings import SupabaseSettings, read_settings

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, SERVICE_KEY, Project
from wan_host import OutputFile
from wan_host.context import StageContext

VARIABLES = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY", "JOB_CALLBACK_SECRET", "RUNPOD_POD_ID")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No setting of the machine reaches a test, and none of a test reaches another."""
    for name in (*VARIABLES, "WAN_HOST_BUCKET", "WAN_HOST_SUPABASE_TIMEOUT", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty.toml").touch()
    monkeypatch.setenv("WAN_HOST_CONFIG", str(tmp_path / "empty.toml"))
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


@pytest.fixture
def project():
    with Project().serving() as serving:
        yield serving


@pytest.fixture
def settings(project):
    """Return settings for the project; values given replace them."""

    def make(**values):
        given = {
            "supabase_url": project.url,
            "supabase_service_role_key": SERVICE_KEY,
            "job_callback_secret": CALLBACK_SECRET,
            "timeout": 0.5,
            "tries": 3,
        }
        return SupabaseSettings(**{**given, **values})

    return make


@pytest.fixture
def context(tmp_path):
    return StageContext(job_id="job1", user_id="u1", workdir=tmp_path, deadline=time.monotonic() + 30)


@dataclass
class Files:
    folder: Path

    def __call__(self, size, key="u1/job1/0.mp4", content_type="video/mp4", fill=b"wan-host "):
        """Write a file of ``size`` bytes whose parts differ, and return it as a publisher gets it."""
        path = self.folder / key.replace("/", "_")
        line = b"".join(fill + str(number).encode() for number in range(2000))
        path.write_bytes((line * (size // len(line) + 1))[:size])
        return OutputFile(
            job_id="job1",
            user_id="u1",
            asset_index=0,
            role="asset",
            path=path,
            key=key,
            content_type=content_type,
            file_size_bytes=size,
        )


@pytest.fixture
def file(tmp_path):
    return Files(tmp_path)
