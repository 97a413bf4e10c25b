"""What pods are asked before they get calls, and how long they may take: whether Redis is there ends no pod."""

from __future__ import annotations

import pytest

from tests.helm import CASES, Object, containers, needs_helm, objects, of_kind, pods, text

pytestmark = needs_helm

STAGES = {"vision": 600, "qformer": 600, "llama": 1800}
WAIT = 1000


@pytest.fixture(scope="module", params=["default", "kserve"])
def found(request: pytest.FixtureRequest) -> list[Object]:
    return objects(text(CASES[request.param], redis__startSeconds=WAIT))


def container_of(found: list[Object], component: str) -> Object:
    [one] = [pod for pod in pods(found) if pod.labels["app.kubernetes.io/component"] == component]
    return containers(one)[-1]


def variable(container: Object, name: str) -> str:
    [value] = [one["value"] for one in container["env"] if one["name"] == name]
    return str(value)


def test_a_starting_pod_may_wait_for_redis_beside_its_weights(found: list[Object]) -> None:
    deadlines = {
        one["metadata"]["name"]: one["spec"].get("progressDeadlineSeconds") for one in of_kind(found, "Deployment")
    }
    for component, weights in STAGES.items():
        container = container_of(found, component)
        assert float(variable(container, "ZIYA_REDIS_START_SECONDS")) == WAIT
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= weights + WAIT
        assert deadlines.get(f"trial-{component}", 1e9) > weights + WAIT


def test_a_gateway_is_alive_before_it_is_ready(found: list[Object]) -> None:
    container = container_of(found, "gateway")
    assert float(variable(container, "ZIYA_REDIS_START_SECONDS")) == WAIT
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert paths == ["/healthz", "/healthz", "/readyz"]


def test_the_public_port_shows_no_metrics(found: list[Object]) -> None:
    assert variable(container_of(found, "gateway"), "ZIYA_GATEWAY_HTTP_METRICS") == "false"
