"""Metrics: those that scalers, alerts and dashboards ask for, by which labels, and those that a page tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helm import CHART, Object, rendered

DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
CASES = ("hpa", "keda", "kserve hpa", "kserve keda")
METRIC = re.compile(r"\bziya_[a-z_]+")
_SELECTED = re.compile(r"\b(ziya_[a-z_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_BY = re.compile(r"\bby \(([^)]*)\)")
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


@dataclass(frozen=True)
class Use:
    """One metric in a query: its matchers (label, operator, value), and what the query groups by."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    grouped: frozenset[str]

    @property
    def labels(self) -> frozenset[str]:
        return self.grouped | {label for label, _, _ in self.matchers}


def uses(query: str) -> Iterator[Use]:
    """Every metric of ours in a query."""
    grouped = frozenset(label.strip() for group in _BY.findall(query) for label in group.split(","))
    for metric, matchers in _SELECTED.findall(query):
        yield Use(metric, tuple(_MATCHER.findall(matchers)), grouped)


def external(found: list[Object]) -> Iterator[tuple[str, Use]]:
    """Of HPAs: metrics with labels to choose by."""
    for one in found:
        if one["kind"] == "HorizontalPodAutoscaler":
            for metric in one["spec"]["metrics"]:
                if metric["type"] == "External":
                    chosen = metric["external"]["metric"]
                    matchers = tuple((k, "=", v) for k, v in chosen["selector"]["matchLabels"].items())
                    yield one["metadata"]["name"], Use(chosen["name"], matchers, frozenset())


def legends() -> Iterator[tuple[str, str, str]]:
    """Of dashboards: the panel, its query, and the label that its legend shows."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    yield f"{path.name}: {panel['title']}", target["expr"], label
