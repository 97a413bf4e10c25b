"""Scalers, alerts and dashboards ask for what is there, and where an alert sends its reader somebody has written.

That the metrics of serving exist is asked of the running programs: tests/test_system.py.
"""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client import generate_latest

from services.operator.metrics import OperatorMetrics
from tests.chart_metrics import DASHBOARDS, METRIC, asked, dashboard_queries, queries, told
from tests.helm import CASES, NAMESPACE, ROOT, matches, named, needs_helm, objects, of_kind, rendered, text

pytestmark = needs_helm

RUNBOOK = ROOT / "docs" / "runbook.md"


def test_what_is_asked_of_the_operator_it_tells() -> None:
    names = {name for name in asked() if name.startswith("ziya_operator_")}
    assert len(names) >= 5
    assert names <= told(generate_latest(OperatorMetrics().registry).decode())


def test_every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert() -> None:
    everything = objects(text(CASES["keda"], tls__enabled=True, tls__secretName="certificates"))
    rules = named(everything, "PrometheusRule", "monitoring")["spec"]["groups"]
    alerts = [rule for group in rules for rule in group["rules"]]
    headings = re.findall(r"^## (Ziya\w+)$", RUNBOOK.read_text("utf-8"), re.MULTILINE)
    assert [alert["alert"] for alert in alerts] == headings
    for alert in alerts:
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_the_metrics_that_the_documents_name_are_those() -> None:
    named_there = set(METRIC.findall((ROOT / "docs" / "install.md").read_text("utf-8")))
    assert len(named_there) >= 6
    assert named_there <= set(asked())


@pytest.mark.parametrize("case", ["hpa", "keda", "kserve keda"])
def test_queries_keep_to_this_release(case: str) -> None:
    """To its namespace, and where a scaler asks, to one Service of the chart, which a ServiceMonitor reads."""
    found = rendered(case)
    services = {one["metadata"]["name"] for one in of_kind(found, "Service")}
    for where, query in queries(found):
        if "{" in query:
            assert query.count(f'namespace="{NAMESPACE}"') == query.count("{"), where
            for name in re.findall(r'service="([^"]+)"', query):
                assert name in services
                assert f'service="{name}"' in query


def test_every_service_monitor_reads_a_metrics_port_of_one_service() -> None:
    found = rendered("keda")
    monitors = of_kind(found, "ServiceMonitor")
    assert len(monitors) == 5
    for monitor in monitors:
        [service] = [
            one for one in of_kind(found, "Service") if matches(monitor["spec"]["selector"], one["metadata"]["labels"])
        ]
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_are_whole(path: object) -> None:
    board = json.loads(path.read_text("utf-8"))  # type: ignore[attr-defined]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for _, query in dashboard_queries():
        assert query.count("(") == query.count(")")
        assert "$namespace" in query or query.startswith("label_values(")


def test_grafana_gets_every_dashboard() -> None:
    maps = [one for one in of_kind(rendered("keda"), "ConfigMap") if one["metadata"]["labels"].get("grafana_dashboard")]
    assert {name for one in maps for name in one["data"]} == {path.name for path in DASHBOARDS}
    for one in maps:
        for name, content in one["data"].items():
            [path] = [path for path in DASHBOARDS if path.name == name]
            assert json.loads(content) == json.loads(path.read_text("utf-8"))
