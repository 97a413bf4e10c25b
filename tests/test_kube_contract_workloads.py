"""The contract of a Kubernetes API, continued: what Helm, scalers and `kubectl scale` rely on.

Workloads with their defaults, the subresource scale, apply to built-in kinds, releases kept in Secrets, protobuf.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kubernetes.client import ApiException

from tests.kube.objects import Object
from tests.kube.space import Space, refused
from tests.kube.waiting import gone

pytest_plugins = ("tests.kube.space_fixtures",)

MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"


def path(space: Space, group: str, plural: str, *more: str) -> str:
    place = "/api/v1" if group == "v1" else f"/apis/{group}"
    return "/".join((place, "namespaces", space.name, plural, *more))


def deployment(name: str, **spec: Any) -> Object:
    """Its pods have no node to run on."""
    labels = {"app": name}
    pod = {"nodeSelector": {"test.ziya.dev/node": "none"}, "containers": [{"name": "main", "image": "busybox:1"}]}
    whole = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": whole}


def create(space: Space, body: Object, plural: str) -> Object:
    return space.request("POST", path(space, body["apiVersion"], plural), body)


def apply(space: Space, body: Object, plural: str, manager: str = "helm", **query: str) -> Object:
    where = path(space, body["apiVersion"], plural, body["metadata"]["name"])
    return space.request("PATCH", where, body, APPLY, fieldManager=manager, **query)


def test_a_deployment_gets_its_defaults(space: Space) -> None:
    made = create(space, deployment("d"), "deployments")
    assert (made["spec"]["replicas"], made["metadata"]["generation"]) == (1, 1)
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": "25%"}
    assert made["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"


def test_a_deployment_keeps_its_selector_and_has_one_that_fits(space: Space) -> None:
    with pytest.raises(ApiException) as error:
        create(space, deployment("d", selector={"matchLabels": {"app": "other"}}), "deployments")
    assert "`selector` does not match template `labels`" in refused(error)["message"]
    create(space, deployment("d"), "deployments")
    labels = {"app": "d", "more": "x"}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}
    with pytest.raises(ApiException) as error:
        space.request("PATCH", path(space, "apps/v1", "deployments", "d"), {"spec": spec}, MERGE)
    assert "field is immutable" in refused(error)["message"]


def test_replicas_are_set_through_the_scale(space: Space) -> None:
    create(space, deployment("d"), "deployments")
    where = path(space, "apps/v1", "deployments", "d", "scale")
    found = space.request("GET", where)
    assert (found["apiVersion"], found["kind"], found["spec"]) == ("autoscaling/v1", "Scale", {"replicas": 1})
    assert found["status"]["selector"] == "app=d"
    assert space.request("PATCH", where, {"spec": {"replicas": 4}}, MERGE)["spec"] == {"replicas": 4}
    found = space.request("GET", where)
    found["spec"]["replicas"] = 2
    assert space.request("PUT", where, found)["spec"]["replicas"] == 2
    assert space.request("GET", path(space, "apps/v1", "deployments", "d"))["spec"]["replicas"] == 2
    with pytest.raises(ApiException) as error:
        space.request("PATCH", where, {"spec": {"replicas": -1}}, MERGE)
    assert error.value.status == 422


def test_who_applies_without_replicas_leaves_them_to_others(space: Space) -> None:
    apply(space, deployment("d"), "deployments")
    where = path(space, "apps/v1", "deployments", "d")
    space.request("PATCH", f"{where}/scale", {"spec": {"replicas": 3}}, MERGE)
    assert apply(space, deployment("d", minReadySeconds=1), "deployments")["spec"]["replicas"] == 3


def test_who_no_longer_applies_its_own_replicas_gets_the_default(space: Space) -> None:
    assert apply(space, deployment("d", replicas=5), "deployments")["spec"]["replicas"] == 5
    assert apply(space, deployment("d"), "deployments")["spec"]["replicas"] == 1


def test_an_unknown_field_is_not_applied(space: Space) -> None:
    with pytest.raises(ApiException, match="field not declared in schema"):
        apply(space, deployment("d", odd=1), "deployments", fieldValidation="Strict")
    assert gone(lambda: space.request("GET", path(space, "apps/v1", "deployments", "d")))


def test_a_dry_run_leaves_nothing(space: Space) -> None:
    assert apply(space, deployment("d"), "deployments", dryRun="All")["spec"]["replicas"] == 1
    assert gone(lambda: space.request("GET", path(space, "apps/v1", "deployments", "d")))


def test_a_scaler_has_bounds_that_fit(space: Space) -> None:
    body: Object = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}}
    body["spec"] = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3}
    assert create(space, body, "horizontalpodautoscalers")["spec"]["minReplicas"] == 1
    body["metadata"], body["spec"] = {"name": "i"}, {**body["spec"], "minReplicas": 4}
    with pytest.raises(ApiException) as error:
        create(space, body, "horizontalpodautoscalers")
    assert "must be greater than or equal to `minReplicas`" in refused(error)["message"]


def test_a_budget_says_one_thing(space: Space) -> None:
    body: Object = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}}
    body["spec"] = {"selector": {"matchLabels": {"app": "d"}}, "maxUnavailable": 1, "minAvailable": 1}
    with pytest.raises(ApiException) as error:
        create(space, body, "poddisruptionbudgets")
    assert "cannot be both set" in refused(error)["message"]
    del body["spec"]["minAvailable"]
    assert create(space, body, "poddisruptionbudgets")["metadata"]["generation"] == 1


def test_an_annotation_has_a_proper_name(space: Space) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "annotations": {"no name!": "x"}}}
    with pytest.raises(ApiException) as error:
        create(space, body, "configmaps")
    assert refused(error)["details"]["causes"][0]["field"] == "metadata.annotations"


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes((number << 3 | 2, len(value))) + value


def message(kind: str, body: bytes) -> bytes:
    return b"k8s\0" + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, body)


def test_secrets_come_as_protobuf_too(space: Space) -> None:
    """As Helm keeps its releases; answers are JSON for who takes that."""
    labels = field(11, field(1, b"owner") + field(2, b"helm"))
    secret = field(1, field(1, b"s") + field(8, b"") + labels)
    secret += field(2, field(1, b"release") + field(2, b"\x00\xff")) + field(3, b"helm.sh/release.v1")
    made = post(space, path(space, "v1", "secrets"), message("Secret", secret))
    assert (made["type"], made["metadata"]["labels"]) == ("helm.sh/release.v1", {"owner": "helm"})
    assert base64.b64decode(made["data"]["release"]) == b"\x00\xff"
    listed = space.request("GET", path(space, "v1", "secrets"), labelSelector="owner=helm")["items"]
    assert [one["metadata"]["name"] for one in listed] == ["s"]


def post(space: Space, where: str, body: bytes) -> Object:
    """Past the official client, which knows JSON alone."""
    how = space.api.configuration
    headers = {"Content-Type": PROTOBUF, "Accept": "application/json", **space.api.default_headers}
    space.api.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
    answer = space.api.rest_client.pool_manager.request("POST", how.host + where, body=body, headers=headers)
    assert answer.status == 201, answer.data
    made: Object = json.loads(answer.data)
    return made
