"""The names of the metrics are part of the contract."""

import itertools

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wan_host.metrics import CONTENT_TYPE, Metrics

CONTRACT = {
    "wan_host_jobs_total": ("counter", ("job_type", "reference_mode", "model", "outcome")),
    "wan_host_stage_seconds": ("histogram", ("stage", "job_type")),
    "wan_host_step_seconds": ("histogram", ("model",)),
    "wan_host_job_seconds": ("histogram", ("job_type", "reference_mode")),
    "wan_host_queue_depth": ("gauge", ()),
    "wan_host_queue_wait_seconds": ("histogram", ()),
    "wan_host_attempts_total": ("counter", ()),
    "wan_host_dead_letters_total": ("counter", ("reason",)),
    "wan_host_lease_lost_total": ("counter", ()),
    "wan_host_queue_commands_total": ("counter", ("backend",)),
    "wan_host_vram_bytes": ("gauge", ("device", "kind")),
    "wan_host_gpu_busy_seconds_total": ("counter", ("device",)),
    "wan_host_model_loaded": ("gauge", ("model",)),
    "wan_host_model_load_seconds": ("histogram", ("model",)),
    "wan_host_lane_restarts_total": ("counter", ("lane", "reason")),
    "wan_host_report_pending": ("gauge", ()),
    "wan_host_plugin_info": ("gauge", ("name", "version", "status")),
    "wan_host_build_info": ("gauge", ("version",)),
}


def touched():
    """All metrics with one value each, as a scraper reads them."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        names = getattr(metric, "_labelnames", None)
        if names is None:
            continue
        child = metric.labels(*names) if names else metric
        (getattr(child, "observe", None) or child.inc)(1)
    return list(text_string_to_metric_families(metrics.render().decode()))


def test_the_names_types_and_labels_are_those_of_the_contract():
    found = {}
    for family in touched():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, {label for sample in family.samples for label in sample.labels if label != "le"})
    assert found == {name: (kind, set(labels)) for name, (kind, labels) in CONTRACT.items()}


def test_every_sample_is_read_under_a_name_that_follows_from_the_contract():
    samples = {sample.name for family in touched() for sample in family.samples}
    expected = set()
    for name, (kind, _) in CONTRACT.items():
        expected |= {f"{name}{ending}" for ending in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    assert samples == expected


def test_buckets_reach_from_ten_milliseconds_to_twenty_minutes():
    buckets = {
        family.name: [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]
        for family in touched()
        if family.type == "histogram"
    }
    assert len(buckets) == 5
    for bounds in buckets.values():
        assert (bounds[0], bounds[-2], bounds[-1]) == (0.01, 1200.0, float("inf"))
        assert bounds == sorted(bounds)
        assert max(later / earlier for earlier, later in itertools.pairwise(bounds[:-1])) <= 2.5


def test_every_metric_says_what_it_counts():
    assert all(family.documentation for family in touched())


def test_two_workers_in_one_process_do_not_share_their_numbers():
    one, other = Metrics(), Metrics()
    one.attempts.inc()
    assert b"wan_host_attempts_total 1.0" in one.render()
    assert b"wan_host_attempts_total 0.0" in other.render()


@pytest.mark.parametrize("word", ["text/plain", "version=0.0.4", "charset=utf-8"])
def test_the_content_type_is_prometheus_own(word):
    assert word in CONTENT_TYPE
