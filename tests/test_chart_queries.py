"""By which labels scalers, alerts and dashboards choose and group: the programs' own, or those that Prometheus adds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.metrics import GatewayMetrics
from services.operator.metrics import PHASES, OperatorMetrics
from services.operator.waiting import QUEUES
from services.qformer.app import QFormerService
from services.qformer.app import Settings as QFormerSettings
from services.vision.app import Settings as VisionSettings
from services.vision.app import VisionService
from tests.certificates import Authority
from tests.chart_metrics import CASES, Use, dashboard_queries, external, legends, queries, uses
from tests.helm import CASES as INSTALLED
from tests.helm import named, needs_helm, objects, rendered, text
from ziya import errors
from ziya.bus import Bus
from ziya.telemetry import Metrics
from ziya.tls import TlsFolder

pytestmark = needs_helm

# What the chart's ServiceMonitors have Prometheus add to every sample.
ADDED = {"namespace", "service", "pod"}
OUTCOMES = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ZiyaError)}
# The values that a label may have, where a query names one.
VALUES = {
    ("ziya_gateway_requests_total", "outcome"): {"ok", *OUTCOMES},
    ("ziya_gateway_images_total", "cached"): {"true", "false"},
    ("ziya_vision_features_total", "source"): {"computed", "memory", "bus", "flight"},
    ("ziya_vision_batch_dropped_total", "reason"): {"expired", "cancelled", "full"},
    ("ziya_qformer_batch_dropped_total", "reason"): {"expired", "cancelled", "full"},
    ("ziya_qformer_works_total", "outcome"): {"done", "cached", "withdrawn", *OUTCOMES},
    ("ziya_operator_jobs", "phase"): set(PHASES),
    ("ziya_operator_queue_waiting", "queue"): set(QUEUES),
    ("ziya_operator_resyncs_total", "outcome"): {"done", "failed"},
}


@pytest.fixture(scope="module")
def told(tiny_checkpoint: Path) -> dict[str, set[str]]:
    """The labels of each metric that the Python programs have."""
    gateway = Metrics("gateway")
    GatewayMetrics(gateway)
    AdmissionMetrics(gateway)
    Bus("redis://127.0.0.1", metrics=gateway)
    vision = VisionService(VisionSettings(checkpoint=tiny_checkpoint))
    qformer = QFormerService(QFormerSettings(checkpoint=tiny_checkpoint))
    registries = [one.registry for one in (gateway, vision.metrics, qformer.metrics, OperatorMetrics())]
    return {name: labels for registry in registries for name, labels in labels_of(registry)}


def labels_of(registry: CollectorRegistry) -> Iterator[tuple[str, set[str]]]:
    for collector, names in registry._collector_to_names.items():
        for name in names:
            own = set(getattr(collector, "_labelnames", ()))
            yield name, own | {"le"} if name.endswith("_bucket") else own


def every() -> Iterator[tuple[str, Use]]:
    for case in CASES:
        for where, query in queries(rendered(case)):
            yield from ((where, use) for use in uses(query))
        yield from external(rendered(case))
    for where, query in dashboard_queries():
        yield from ((where, use) for use in uses(query))


def test_every_label_is_one_that_the_metric_has(told: dict[str, set[str]]) -> None:
    checked = 0
    for where, use in every():
        if not use.metric.startswith("ziya_llama_"):  # those have none, and Triton's page is asked in test_system.py
            assert use.metric in told, where
        assert use.labels <= told.get(use.metric, set()) | ADDED, f"{where}: {use.metric} has no {use.labels}"
        checked += len(use.labels - ADDED)
    assert checked > 20


def test_every_value_that_a_query_names_is_one_that_is_told() -> None:
    found = {}
    for where, use in every():
        for label, operator, value in use.matchers:
            if label not in ADDED:
                allowed = VALUES[use.metric, label]
                assert set(value.split("|") if operator == "=~" else [value]) <= allowed, where
                found[use.metric, label] = where
    assert set(found) == set(VALUES)


def test_quantiles_are_of_buckets() -> None:
    for where, query in dashboard_queries():
        if "histogram_quantile" in query:
            assert all(use.metric.endswith("_bucket") and "le" in use.grouped for use in uses(query)), where


def test_legends_show_labels_that_the_query_keeps() -> None:
    shown = list(legends())
    assert len(shown) > 10
    for where, query, label in shown:
        assert all(label in use.grouped for use in uses(query)), f"{where}: {label}"


def test_a_certificate_that_ends_is_told_by_the_name_that_the_alert_asks_for(tmp_path: Path) -> None:
    made = objects(text(INSTALLED["keda"], tls__enabled=True, tls__secretName="certificates"))
    [rule] = [
        rule
        for group in named(made, "PrometheusRule", "monitoring")["spec"]["groups"]
        for rule in group["rules"]
        if rule["alert"] == "ZiyaCertificateExpires"
    ]
    Authority().issue(tmp_path / "tls")
    names = {"ziya_llama_certificate_expires_timestamp_seconds"}  # of Triton's page: tests/test_triton.py
    for program, settings in (("gateway", VisionSettings), ("vision", VisionSettings), ("qformer", QFormerSettings)):
        metrics = Metrics(program)
        assert TlsFolder.of(settings(checkpoint=tmp_path, tls_dir=tmp_path / "tls"), metrics) is not None
        names |= {name for name, _ in labels_of(metrics.registry)}
    assert {use.metric for use in uses(rule["expr"])} == names
    assert "7 * 86400" in rule["expr"]
    without = named(rendered("keda"), "PrometheusRule", "monitoring")
    assert "ZiyaCertificateExpires" not in str(without)
