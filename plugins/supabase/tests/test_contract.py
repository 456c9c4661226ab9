"""The plugin keeps the contract of its hooks, against a project on loopback."""

import pytest
from wan_host_supabase import patience, reports, storage

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, SERVICE_KEY, Stored
from wan_host.testing.contract import PluginContract, PublisherContract, ReferenceContract, ReportContract, WorkerContract


@pytest.fixture(autouse=True)
def configured(project, monkeypatch):
    """Lead the plugin to the project, with short pauses."""
    monkeypatch.setenv("SUPABASE_URL", project.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", SERVICE_KEY)
    monkeypatch.setenv("JOB_CALLBACK_SECRET", CALLBACK_SECRET)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    storage.store.cache_clear()
    reports.callback.cache_clear()
    yield
    reports.callback().close()
    storage.store.cache_clear()
    reports.callback.cache_clear()


class TestPlugin(PluginContract):
    plugin = "supabase"


class TestPublisher(PublisherContract):
    plugin = "supabase"

    @pytest.fixture(autouse=True)
    def bucket(self, project):
        self.project = project

    def published(self, url):
        return self.project.data(url)


class TestReferences(ReferenceContract):
    plugin = "supabase"

    @pytest.fixture
    def reference(self, project):
        project.objects["user-library", "user/face.png"] = Stored(b"a picture", "image/png", "no-cache")
        return "user-library/user/face.png", b"a picture"


class TestReports(ReportContract):
    plugin = "supabase"

    @pytest.fixture(autouse=True)
    def receiver(self, project):
        self.project = project

    def receiver_answers(self, status):
        if status != 200:
            self.project.fail("POST", "job-callback", "status", status)


class TestWorker(WorkerContract):
    plugin = "supabase"
