"""Names of metrics: those that scalers, alerts and dashboards of the chart ask for, and those that a page tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.helm import CHART, Object, rendered

DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
CASES = ("hpa", "keda", "kserve hpa", "kserve keda")
METRIC = re.compile(r"\bziya_[a-z_]+")
_TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def told(page: str) -> set[str]:
    """By a program's /metrics, also of what has not happened yet."""
    return {name + suffix for name, kind in _TYPE.findall(page) for suffix in _SUFFIXES.get(kind, ("",))}


def asked() -> dict[str, str]:
    """Each metric that is asked for, with one of the places where it is."""
    found = {one: where for case in CASES for where, query in queries(rendered(case)) for one in METRIC.findall(query)}
    panels = {one: where for where, query in dashboard_queries() for one in METRIC.findall(query)}
    return panels | found


def queries(found: list[Object]) -> Iterator[tuple[str, str]]:
    """Of scalers and alerts: where it stands, and the query or the name."""
    for one in found:
        name, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        if one["kind"] == "HorizontalPodAutoscaler":
            yield from ((name, metric[metric["type"].lower()]["metric"]["name"]) for metric in spec["metrics"])
        elif one["kind"] == "ScaledObject":
            yield from ((name, trigger["metadata"]["query"]) for trigger in spec["triggers"])
        elif one["kind"] == "InferenceService":
            metrics = spec["predictor"].get("autoScaling", {}).get("metrics", [])
            yield from ((name, metric["external"]["metric"]["query"]) for metric in metrics)
        elif one["kind"] == "PrometheusRule":
            yield from ((rule["alert"], rule["expr"]) for group in spec["groups"] for rule in group["rules"])


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text("utf-8"))
        for panel in board["panels"]:
            yield from ((f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"])
        yield from ((path.name, one["query"]["query"]) for one in board["templating"]["list"] if one["type"] == "query")
