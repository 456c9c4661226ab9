"""Optional tracing by OpenTelemetry (the extra ``otel``): a trace per job, a span per attempt, and one per stage within it.

Where the payload's ``metadata.traceparent`` names a trace, the job joins it; else its trace id follows from the job's id, so
that all attempts, on whatever worker, stand in one trace. Spans are written when an attempt ends, from the times that the run
noted: nothing is done while it works. Where they go is said by OpenTelemetry's own variables, ``OTEL_EXPORTER_OTLP_ENDPOINT``
first of all. Prompts are no part of a span.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from wan_host import __version__
from wan_host.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from wan_host.run import Run
    from wan_host.settings import Settings

__all__ = ["Tracer", "open_tracer"]

_ENDED_WELL = frozenset({"completed", "cancelled"})


def open_tracer(settings: Settings) -> Tracer | None:
    """Return a tracer where WAN_HOST_TRACING asks for one. Raises SettingsError where the extra is not installed."""
    if not settings.tracing:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(f"WAN_HOST_TRACING needs the extra: pip install 'wan-host[otel]' ({error})") from error
    return Tracer(BatchSpanProcessor(OTLPSpanExporter()), worker_id=settings.worker_id)


class Tracer:
    """Writes the spans of attempts that have ended. Not for several threads."""

    def __init__(self, processor: Any, *, worker_id: str) -> None:
        """``processor`` is a SpanProcessor of OpenTelemetry's SDK."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class JobIds(RandomIdGenerator):
            """Takes the trace id from the job, where no parent has one."""

            job_id = ""

            def generate_trace_id(self) -> int:
                return int.from_bytes(hashlib.sha256(self.job_id.encode()).digest()[:16], "big")

        self._ids = JobIds()
        about = {"service.name": "wan-host", "service.version": __version__, "service.instance.id": worker_id}
        self._provider = TracerProvider(resource=Resource.create(about), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("wan_host", __version__)

    def record(self, run: Run, outcome: str) -> None:
        """Write the spans of an attempt that ends now as ``outcome``, the metrics' word for it."""
        from opentelemetry import trace

        ended, job = time.time(), run.job
        about: dict[str, str | int | float] = {
            "wan_host.job.id": run.job_id,
            "wan_host.attempt": run.attempt,
            "wan_host.outcome": outcome,
            "wan_host.queue_seconds": run.queue_time,
        }
        if job is not None:
            about |= {
                "wan_host.job.type": job.type,
                "wan_host.model": job.model.name,
                "wan_host.reference_mode": job.request.reference_mode.value,
            }
        self._ids.job_id = run.job_id
        parent = _parent(job.traceparent if job is not None else None)
        began = run.visits[0][1] if run.visits else ended
        attempt = self._tracer.start_span("job", context=parent, start_time=_ns(began), attributes=about)
        if outcome not in _ENDED_WELL:
            attempt.set_status(trace.StatusCode.ERROR, outcome)
        inside = trace.set_span_in_context(attempt)
        ends = [*(entered for _, entered in run.visits[1:]), ended]
        for (stage, entered), left in zip(run.visits, ends, strict=False):  # an attempt that ends before its first stage has none
            self._tracer.start_span(stage, context=inside, start_time=_ns(entered)).end(_ns(left))
        attempt.end(_ns(ended))

    def close(self) -> None:
        """Send what waits; blocks for as long as OpenTelemetry's own limits allow."""
        self._provider.shutdown()


def _parent(traceparent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
