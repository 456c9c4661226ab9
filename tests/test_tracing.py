"""Traces of jobs: in this process, and from a worker to a collector."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.end_to_end.conftest import Site, payload
from wan_host.errors import SettingsError
from wan_host.run import Run
from wan_host.settings import load_settings
from wan_host.testing import instant
from wan_host.tracing import Tracer, open_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def recorded():
    exporter = InMemorySpanExporter()
    tracer = Tracer(SimpleSpanProcessor(exporter), worker_id="w")
    yield tracer, exporter
    tracer.close()


def a_run(tmp_path, job_id="job-1", attempt=1):
    run = Run(job_id=job_id, user_id="u", token=1, attempt=attempt, deadline=0.0, workdir=tmp_path)
    for stage in ("fetch", "waiting"):
        run.enter(stage)
    for step in (0, 1, 2):
        run.stepped("denoise", step, 2)
    run.enter("publish")
    return run


def test_an_attempt_is_a_span_with_its_stages_end_to_end(recorded, tmp_path):
    tracer, exporter = recorded
    tracer.record(a_run(tmp_path), "completed")
    *stages, attempt = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["fetch", "waiting", "denoise", "publish"]
    assert {span.parent.span_id for span in stages} == {attempt.context.span_id}
    assert attempt.parent is None
    for span, following in pairwise(stages):
        assert span.start_time <= span.end_time == following.start_time
    assert (attempt.start_time, attempt.end_time) == (stages[0].start_time, stages[-1].end_time)
    assert attempt.attributes["wan_host.outcome"] == "completed"
    assert attempt.status.status_code is StatusCode.UNSET


def test_an_attempt_that_ends_before_its_first_stage_is_a_span_of_no_length(recorded, tmp_path):
    tracer, exporter = recorded
    tracer.record(Run(job_id="a", user_id="", token=1, attempt=0, deadline=0.0, workdir=tmp_path), "failed")
    (attempt,) = exporter.get_finished_spans()
    assert attempt.start_time == attempt.end_time


def test_all_attempts_of_a_job_stand_in_one_trace_and_other_jobs_in_others(recorded, tmp_path):
    tracer, exporter = recorded
    tracer.record(a_run(tmp_path), "retried")
    tracer.record(a_run(tmp_path, attempt=2), "completed")
    tracer.record(a_run(tmp_path, job_id="job-2"), "failed")
    first, second, other = (span for span in exporter.get_finished_spans() if span.name == "job")
    assert first.context.trace_id == second.context.trace_id != other.context.trace_id
    assert [span.status.status_code for span in (first, second, other)] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR]


def test_without_the_setting_nothing_is_traced(monkeypatch):
    assert open_tracer(load_settings()) is None
    monkeypatch.setenv("WAN_HOST_TRACING", "true")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"WAN_HOST_TRACING needs the extra: pip install 'wan-host\[otel\]'"):
        open_tracer(load_settings())


class Collector:
    """Takes what OTLP exporters post."""

    def __init__(self):
        self.spans = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                collector.spans += [
                    span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def test_a_worker_sends_the_trace_of_a_job_to_a_collector_and_joins_the_producers(tmp_path):
    instant.install(tmp_path / "plugins")
    collector = Collector()
    tracing = {"WAN_HOST_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with Site(tmp_path, tmp_path / "plugins") as site:
        worker = site.start(**tracing)
        job = json.loads(payload("traced", prompt="a very secret prompt"))
        job["metadata"]["traceparent"] = f"00-{TRACE}-{PARENT}-01"
        site.push(json.dumps(job))
        site.receiver.wait_for("traced", "completed")
        job["id"], job["metadata"]["traceparent"] = "strange", "not a trace"
        site.push(json.dumps(job))
        site.receiver.wait_for("strange", "completed")
        worker.__exit__(None, None, None)
    collector.server.shutdown()
    collector.server.server_close()
    joined = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (attempt,) = (span for span in joined if span.name == "job")
    assert attempt.parent_span_id.hex() == PARENT
    assert {"encode", "postprocess", "publish"} <= {span.name for span in joined}
    assert sum(span.name == "job" for span in collector.spans) == 2, "one that says nonsense gets a trace of its own"
    assert "secret" not in str(collector.spans)
