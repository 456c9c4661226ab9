"""Prometheus metrics. Their names are part of the wire contract; one instance belongs to one worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 240, 360, 600, 1200)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Every metric of a worker, in a registry of its own."""

    def __init__(self) -> None:
        """Create the metrics at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter and histogram, which nobody asked for
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"wan_host_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"wan_host_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"wan_host_{name}", text, labels, registry=registry, buckets=_BUCKETS)

        self.jobs = counter("jobs", "Jobs that ended", "job_type", "reference_mode", "model", "outcome")
        self.stage_seconds = histogram("stage_seconds", "Seconds per stage", "stage", "job_type")
        self.step_seconds = histogram("step_seconds", "Seconds per denoising step", "model")
        self.job_seconds = histogram("job_seconds", "Seconds from start to report", "job_type", "reference_mode")
        self.queue_depth = gauge("queue_depth", "Jobs that wait")
        self.queue_wait_seconds = histogram("queue_wait_seconds", "Seconds from push to start")
        self.attempts = counter("attempts", "Runs that started")
        self.dead_letters = counter("dead_letters", "Jobs that ended as dead letters", "reason")
        self.lease_lost = counter("lease_lost", "Runs whose job another worker took")
        self.queue_commands = counter("queue_commands", "Commands sent to the queue server", "backend")
        self.vram_bytes = gauge("vram_bytes", "Device memory", "device", "kind")
        self.gpu_busy_seconds = counter("gpu_busy_seconds", "Seconds that lanes computed on a device", "device")
        self.model_loaded = gauge("model_loaded", "1 while a lane holds the model", "model")
        self.model_load_seconds = histogram("model_load_seconds", "Seconds to load a model", "model")
        self.lane_restarts = counter("lane_restarts", "Restarts of a lane", "lane", "reason")
        self.report_pending = gauge("report_pending", "Reports that wait for delivery")
        self.plugin_info = gauge("plugin_info", "Plugins that were found", "name", "version", "status")
        self.build_info = gauge("build_info", "The running version", "version")

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)
