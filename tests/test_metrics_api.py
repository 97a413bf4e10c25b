"""The tests' own adapter answers over HTTPS what the HorizontalPodAutoscaler's controller asks, word for word."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from kubernetes.utils.quantity import parse_quantity

from tests.kube.objects import Object, parse_time
from tests.metrics_api import MetricsApi

NAMESPACE, SELECTOR = "models", "app.kubernetes.io/component=gateway"
PODS = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/models/pods/{}/{}?labelSelector={}&metricLabelSelector="
OUTSIDE = "/apis/external.metrics.k8s.io/v1beta1/namespaces/models/{}?labelSelector={}"


def pods(namespace: str, selector: str) -> list[str]:
    return ["a", "b"] if (namespace, selector) == (NAMESPACE, SELECTOR) else []


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricsApi]:
    with MetricsApi(tmp_path, pods) as served:
        yield served


def ask(metrics: MetricsApi, path: str, code: int = 200, accept: str = "application/json") -> Object:
    trust = ssl.create_default_context(cafile=str(metrics.ca_file))
    connection = HTTPSConnection("127.0.0.1", metrics.port, context=trust, timeout=30)
    connection.request("GET", path, headers={"Accept": accept})
    answer = connection.getresponse()
    assert answer.status == code
    found: Object = json.loads(answer.read())
    connection.close()
    return found


@pytest.mark.parametrize("every", ["*", "%2A"])
def test_pods_share_the_total(metrics: MetricsApi, every: str) -> None:
    metrics.set("in_flight", 3)
    selector = SELECTOR.replace("/", "%2F").replace("=", "%3D")
    found = ask(metrics, PODS.format(every, "in_flight", selector))
    assert (found["kind"], found["apiVersion"]) == ("MetricValueList", "custom.metrics.k8s.io/v1beta2")
    assert [one["describedObject"]["name"] for one in found["items"]] == ["a", "b"]
    assert {one["describedObject"]["kind"] for one in found["items"]} == {"Pod"}
    assert [parse_quantity(one["value"]) for one in found["items"]] == [1.5, 1.5]
    assert all(one["metric"]["name"] == "in_flight" and parse_time(one["timestamp"]) for one in found["items"])


def test_no_pod_is_no_value(metrics: MetricsApi) -> None:
    metrics.set("in_flight", 3)
    assert ask(metrics, PODS.format("*", "in_flight", "other=1"))["items"] == []


def test_an_external_metric_is_found_by_its_labels(metrics: MetricsApi) -> None:
    metrics.set("backlog", 40, service="one", queue="control")
    found = ask(metrics, OUTSIDE.format("backlog", "queue%3Dcontrol%2Cservice%3Done"))
    assert (found["kind"], found["apiVersion"]) == ("ExternalMetricValueList", "external.metrics.k8s.io/v1beta1")
    [item] = found["items"]
    assert (item["metricName"], parse_quantity(item["value"])) == ("backlog", 40)
    assert item["metricLabels"] == {"service": "one", "queue": "control"}
    assert ask(metrics, OUTSIDE.format("backlog", "service%3Dtwo"))["items"] == []


def test_what_was_not_set_is_not_there(metrics: MetricsApi) -> None:
    metrics.set("backlog", 40, service="one")
    for path in (PODS.format("*", "odd", ""), PODS.format("*", "backlog", ""), OUTSIDE.format("odd", ""), "/apis/odd"):
        assert ask(metrics, path, 404)["kind"] == "Status"


def test_it_tells_what_it_serves(metrics: MetricsApi) -> None:
    """Also to an API server that would rather have all in one document, and takes the older way."""
    metrics.set("in_flight", 3)
    metrics.set("backlog", 40, service="one")
    custom = ask(metrics, "/apis/custom.metrics.k8s.io/v1beta2")
    assert (custom["kind"], custom["groupVersion"]) == ("APIResourceList", "custom.metrics.k8s.io/v1beta2")
    assert [one["name"] for one in custom["resources"]] == ["pods/in_flight"]
    assert [one["name"] for one in ask(metrics, "/apis/external.metrics.k8s.io/v1beta1")["resources"]] == ["backlog"]
    assert len(ask(metrics, "/apis")["groups"]) == 2
    assert ask(metrics, "/apis/custom.metrics.k8s.io")["preferredVersion"]["version"] == "v1beta2"
    ask(metrics, "/apis", 406, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
