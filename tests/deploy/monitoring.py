"""What the dashboard and the rules ask Prometheus, read from their files."""

import json
import re
from pathlib import Path

import yaml

from wan_host.metrics import Metrics

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "wan-host.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}


def panels():
    """Panels with targets, by title."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def panel_queries():
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def alerts():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def filled_in(query, window):
    """The query as Grafana sends it."""
    return query.replace("$instance", ".*").replace("$window", window).replace("$__range", window)


def metric_labels():
    """Every name that a scrape of a worker can have, with its labels."""
    found = {}
    for metric in vars(Metrics()).values():
        if not hasattr(metric, "_labelnames"):
            continue
        for family in metric.describe():
            endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[family.type]
            found |= {f"{family.name}{ending}": set(metric._labelnames) for ending in endings}
    return found


def names_in(query):
    return set(re.findall(r"\bwan_host_\w+", query))


def labels_in(query):
    """Labels that are matched, grouped by, or shown."""
    matched = {label for body in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", body)}
    grouped = {label.strip() for body in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", query) for label in body.split(",")}
    return (matched | grouped) - {""}
