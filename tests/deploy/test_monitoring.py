"""Dashboard and alert rules ask for what workers have, and the rules do what they say."""

import copy
import json
import re
import shutil
import subprocess

import pytest
import yaml
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.monitoring import (
    ADDED_BY_PROMETHEUS,
    ALERTS,
    DASHBOARD,
    DEPLOY,
    alerts,
    filled_in,
    labels_in,
    metric_labels,
    names_in,
    panel_queries,
    panels,
)

QUERIES = [*panel_queries(), *((rule["alert"], rule["expr"]) for rule in alerts())]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_the_code_has(title, query):
    known = metric_labels()
    names = names_in(query)
    assert names or "up{" in query
    assert names <= set(known)
    assert labels_in(query) <= ADDED_BY_PROMETHEUS.union(*(known[name] for name in names))


def test_every_metric_is_shown():
    def family(name):
        return re.sub(r"_(bucket|sum|count)$", "", name)

    assert {family(name) for name in names_in(DASHBOARD.read_text())} == {family(name) for name in metric_labels()}


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_legend_and_an_annotation_name_only_labels_that_their_query_keeps(panel):
    for target in panel["targets"]:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        assert shown <= labels_in(target["expr"])


def test_the_dashboard_shows_what_it_must():
    titles = {panel["title"] for panel in panels()}
    assert {"Jobs by outcome", "Stages", "Queue wait", "VRAM by kind", "GPU busy", "Reference modes"} <= titles
    assert {"Dead letters by reason", "Reports pending"} <= titles
    (stages,) = [panel for panel in panels() if panel["title"] == "Stages"]
    drawing = stages["fieldConfig"]["defaults"]["custom"]
    assert (stages["type"], drawing["stacking"]["mode"], drawing["fillOpacity"] > 0) == ("timeseries", "normal", True)


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    every = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = set()
    for panel in every:
        where = panel["gridPos"]
        covered = {(where["x"] + x, where["y"] + y) for x in range(where["w"]) for y in range(where["h"])}
        assert not cells & covered, panel["title"]
        assert where["x"] + where["w"] <= 24
        cells |= covered


def lost_in_translation(before, after, path=""):
    """Paths of ``before`` that Grafana's own types did not keep."""
    if isinstance(before, dict):
        for key, value in before.items():
            there = isinstance(after, dict) and key in after
            yield from lost_in_translation(value, after[key], f"{path}/{key}") if there else [f"{path}/{key}"]
    elif isinstance(before, list):
        for index, value in enumerate(before):
            yield from lost_in_translation(value, after[index], f"{path}/{index}")
    elif before != after:
        yield path


def through_grafanas_types(document):
    plugins.register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(document), cls=encoder.JSONEncoder))


def test_grafanas_own_types_know_every_field_of_the_dashboard():
    document = json.loads(DASHBOARD.read_text())
    assert list(lost_in_translation(document, through_grafanas_types(document))) == []
    wrong = copy.deepcopy(document)
    wrong["panels"][1]["fieldConfg"] = {}
    wrong["panels"][1]["options"]["graphMod"] = "area"
    wrong["tempating"] = {}
    lost = list(lost_in_translation(wrong, through_grafanas_types(wrong)))
    assert sorted(lost) == ["/panels/1/fieldConfg", "/panels/1/options/graphMod", "/tempating"]


def test_grafana_is_provisioned_with_what_the_dashboard_asks_for():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    variables = {item["name"]: item for item in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables["datasource"]["query"] == source["type"]
    assert variables["datasource"]["current"]["value"] == source["uid"]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml", "alerts_days_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments):
    done = subprocess.run(["promtool", *arguments], cwd=ALERTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_unit_test_that_makes_it_fire():
    checks = [check for file in ALERTS.parent.glob("*_test.yml") for check in yaml.safe_load(file.read_text())["tests"]]
    fired = {rule["alertname"] for check in checks for rule in check["alert_rule_test"] if rule["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts()}


@needs_promtool
def test_prometheus_can_read_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": filled_in(query, "5m")} for number, (_, query) in enumerate(panel_queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_the_documents_scrape_config_is_one(tmp_path):
    text = (DEPLOY.parent / "docs" / "monitoring.md").read_text()
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
        file = tmp_path / f"{number}.yml"
        file.write_text(block)
        done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
