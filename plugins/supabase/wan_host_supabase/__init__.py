"""wan-host-supabase: publishing, private references, job reports and worker registration on Supabase.

Without ``SUPABASE_URL`` the plugin is silent, and says so where something is to be published all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_host import hookimpl

if TYPE_CHECKING:
    from wan_host import Delivery, HookContext, OutputFile, PublishedFile, Report, WorkerInfo


@hookimpl
def publish(file: OutputFile, context: HookContext) -> PublishedFile:
    """Upload a file into the bucket, replacing what stands there, and confirm the size that arrived."""
    from wan_host_supabase.storage import store

    return store().publish(file, context)


@hookimpl
def fetch_reference(uri: str, context: HookContext) -> bytes | None:
    """Read ``{bucket}/{user_id}/...`` with the service key, for the job's own user only."""
    from wan_host_supabase.references import fetch
    from wan_host_supabase.settings import read_settings

    return fetch(uri, context, read_settings())


@hookimpl
def deliver_report(report: Report, context: HookContext) -> Delivery | None:
    """Post the report to the function ``job-callback``."""
    from wan_host_supabase.reports import callback

    return callback().deliver(report, context)


@hookimpl
def worker_started(worker: WorkerInfo) -> None:
    """Tell the function ``update-worker-url`` where this worker is, now and for as long as it lives."""
    from wan_host_supabase.registration import start
    from wan_host_supabase.settings import read_settings

    start(worker, read_settings())


@hookimpl
def worker_stopping(worker: WorkerInfo) -> None:
    """Take the address back; takes five seconds at most."""
    from wan_host_supabase.registration import stop

    stop(worker)
