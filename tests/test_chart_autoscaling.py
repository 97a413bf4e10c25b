"""HorizontalPodAutoscalers of the chart follow a metric, on a real control plane: up, to their bounds, and down.

Needed is a cluster with a controller manager and an aggregation layer, named by ZIYA_TEST_KUBECONFIG. The metric is the
test's own (tests/metrics_api.py). Pods have no node, so no kubelet is needed, and the test says that they run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kubernetes.client import ApiException

from tests.helm import Case, needs_helm
from tests.helm_release import Place, Release, Releases
from tests.kube.objects import Object, timestamp
from tests.kube.space import REAL, Space
from tests.kube.waiting import eventually
from tests.metrics_api import MetricsApi
from tests.metrics_registration import Unusable, registered
from tests.operator_space import GROUP_OF_TESTS

pytest_plugins = ("tests.helm_release_fixtures",)
needs_cluster = pytest.mark.skipif(not REAL, reason="needs a controller manager: set ZIYA_TEST_KUBECONFIG")
pytestmark = [needs_helm, needs_cluster, pytest.mark.xdist_group(GROUP_OF_TESTS), pytest.mark.timeout(1800)]
IN_FLIGHT, BUS = "ziya_gateway_in_flight", "ziya_qformer_bus_backlog"
AT_REST = (
    "ziya_vision_batch_backlog_seconds",
    "ziya_qformer_batch_backlog_seconds",
    "ziya_llama_waiting",
    "ziya_llama_kv_use",
)
STAGES = ("gateway", "vision", "qformer", "llama")
NOWHERE = {"test.ziya.dev/node": "there-is-none"}
LOW, HIGH = 2, 5
VALUES = {
    "autoscaling.kind": "hpa",
    "autoscaling.downSeconds": 0,
    "operator.enabled": False,
    "gateway.scaling": {"min": LOW, "max": HIGH, "inFlight": 10},
    "qformer.scaling": {"min": LOW, "max": HIGH, "backlogSeconds": 0.5, "busBacklog": 32},
    **{f"{stage}.nodeSelector": NOWHERE for stage in STAGES},
}
MERGE = "application/merge-patch+json"
# A round of the controller is 15 s, a step down 60 s.
UP_SECONDS, DOWN_SECONDS = 120, 360


class Scaled:
    """One stage of a release with metrics that the test sets."""

    def __init__(self, release: Release, metrics: MetricsApi, stage: str) -> None:
        self.metrics, self.space = metrics, Space(release.api, release.namespace)
        self.name = f"{release.name}-{stage}"
        self._pods = f"app.kubernetes.io/instance={release.name},app.kubernetes.io/component={stage}"

    def deployment(self) -> Object:
        return self.space.request("GET", f"/apis/apps/v1/namespaces/{self.space.name}/deployments/{self.name}")

    def scaler(self) -> Object:
        place = f"/apis/autoscaling/v2/namespaces/{self.space.name}/horizontalpodautoscalers"
        return self.space.request("GET", f"{place}/{self.name}")

    def run_pods(self) -> None:
        """What the kubelet would say of those that nobody has run yet."""
        place = f"/api/v1/namespaces/{self.space.name}/pods"
        for pod in self.space.request("GET", place, labelSelector=self._pods)["items"]:
            if pod["status"].get("phase") != "Running":
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": timestamp()}
                status = {"phase": "Running", "startTime": timestamp(), "conditions": [ready]}
                path = f"{place}/{pod['metadata']['name']}/status"
                self.space.request("PATCH", path, {"status": status}, MERGE)

    def reaches(self, replicas: int, seconds: float, least: int = LOW) -> None:
        """The scaler wants so many, and the Deployment is told; never are the bounds left meanwhile."""

        def there() -> bool:
            self.run_pods()
            told, wanted = self.deployment()["spec"]["replicas"], self.scaler().get("status", {}).get("desiredReplicas")
            assert least <= told <= HIGH
            return told == wanted == replicas

        eventually(there, seconds=seconds, pause=1)


@pytest.fixture
def installed(place: Place, releases: Releases, tmp_path: Path) -> Iterator[tuple[Release, MetricsApi]]:
    """With all metrics at rest. Skips where this cluster cannot do it."""
    release = releases("helm4", Case("values-tiny.yaml", VALUES))
    core = Space(place.api, release.namespace).core

    def pods(namespace: str, selector: str) -> list[str]:
        found = core.list_namespaced_pod(namespace, label_selector=selector).items
        return [one.metadata.name for one in found if one.metadata.deletion_timestamp is None]

    with ExitStack() as stack:
        metrics = stack.enter_context(MetricsApi(tmp_path, pods))
        for name in (IN_FLIGHT, *AT_REST):
            metrics.set(name, 0)
        metrics.set(BUS, 0, service=f"{release.name}-qformer")
        try:
            stack.enter_context(registered(Space(place.api, release.namespace), metrics.port))
        except Unusable as reason:
            pytest.skip(str(reason))
        release.install()
        release.check()
        skip_without_controllers(Scaled(release, metrics, "gateway"))
        yield release, metrics


def skip_without_controllers(stage: Scaled) -> None:
    try:
        eventually(lambda: stage.deployment().get("status", {}).get("observedGeneration"), seconds=60, pause=1)
        eventually(lambda: stage.scaler().get("status", {}).get("conditions"), seconds=90, pause=1)
    except (AssertionError, ApiException) as error:
        pytest.skip(f"no controller manager looks after Deployments and HorizontalPodAutoscalers here: {error}")


def test_scalers_follow_their_metrics(installed: tuple[Release, MetricsApi]) -> None:
    release, metrics = installed
    gateway, qformer = Scaled(release, metrics, "gateway"), Scaled(release, metrics, "qformer")
    for stage in (gateway, qformer):
        stage.reaches(LOW, UP_SECONDS, least=1)  # a Deployment begins with one
    metrics.set(IN_FLIGHT, 25)
    gateway.reaches(math.ceil(25 / 10), UP_SECONDS)
    metrics.set(BUS, 90, service=qformer.name)
    qformer.reaches(math.ceil(90 / 32), UP_SECONDS)
    metrics.set(IN_FLIGHT, 1000)
    gateway.reaches(HIGH, UP_SECONDS)
    release.upgrade(gateway__maxInFlight=11)
    assert gateway.deployment()["spec"]["replicas"] == HIGH
    metrics.set(IN_FLIGHT, 12)
    gateway.reaches(math.ceil(12 / 10), DOWN_SECONDS)
    metrics.set(BUS, 0, service=qformer.name)
    qformer.reaches(LOW, DOWN_SECONDS)
    assert any("/pods/" in path and IN_FLIGHT in path for path in metrics.asked)
    assert any(BUS in path and "external" in path for path in metrics.asked)
