"""The plugin as the host sees it: its hooks, its silence without settings, and what its import costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pluggy
import pytest
import wan_host_supabase
from wan_host_supabase import reports, storage

from plugins.supabase.tests.stand_in import CALLBACK_SECRET, SERVICE_KEY, Stored
from wan_host import PublishRefused, Report, WorkerInfo, hookspecs

WORKER = WorkerInfo(worker_id="w9", version="0.1.0", host="127.0.0.1", port=7860, url="", devices=())
REPORT = Report(job_id="job1", attempt=1, status="failed", sequence=1, payload={"job_id": "job1", "status": "failed"})


@pytest.fixture
def hook():
    storage.store.cache_clear()
    reports.callback.cache_clear()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(wan_host_supabase, "supabase")
    manager.check_pending()
    yield manager.hook
    reports.callback().close()
    storage.store.cache_clear()
    reports.callback.cache_clear()


def test_the_entry_point_leads_to_the_plugin():
    (entry,) = entry_points(group="wan_host", name="supabase")
    assert entry.load() is wan_host_supabase


def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, wan_host_supabase; print([n for n in ('supabase', 'storage3', 'httpx', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_hook_works_with_settings_from_the_environment(project, hook, file, context, monkeypatch):
    monkeypatch.setenv("SUPABASE_URL", project.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", SERVICE_KEY)
    monkeypatch.setenv("JOB_CALLBACK_SECRET", CALLBACK_SECRET)
    project.objects["user-library", "u1/face.png"] = Stored(b"png", "image/png", "no-cache")
    assert hook.publish(file=file(100), context=context).url == "workspace-temp/u1/job1/0.mp4"
    assert hook.fetch_reference(uri="user-library/u1/face.png", context=context) == b"png"
    assert [delivery.outcome for delivery in hook.deliver_report(report=REPORT, context=context)] == ["accepted"]
    hook.worker_started(worker=WORKER)
    hook.worker_stopping(worker=WORKER)


def test_without_settings_the_plugin_is_silent_but_for_publishing(hook, file, context):
    assert hook.fetch_reference(uri="workspace-temp/u1/0.png", context=context) is None
    assert hook.deliver_report(report=REPORT, context=context) == []
    hook.worker_started(worker=WORKER)
    hook.worker_stopping(worker=WORKER)
    with pytest.raises(PublishRefused, match="needs SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY"):
        hook.publish(file=file(10), context=context)
