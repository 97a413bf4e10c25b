"""The contract of a Kubernetes API, continued: pods where no kubelet runs, and Jobs that are deleted or refused."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client import ApiException

from tests.kube.objects import Object
from tests.kube.samples import config_map, job, owned_by
from tests.kube.space import Space, refused
from tests.kube.waiting import eventually, gone

pytest_plugins = ("tests.kube.space_fixtures",)

CONTAINER = {"name": "main", "image": "busybox"}
NOWHERE = {"test.ziya.dev/node": "there-is-none"}


def path(space: Space, name: str = "", sub: str = "") -> str:
    return "/".join(step for step in ("/api/v1/namespaces", space.name, "pods", name, sub) if step)


def pod(space: Space, name: str, **more: Any) -> Object:
    space.core.create_namespaced_service_account(space.name, {"metadata": {"name": "runner"}})
    spec = {"containers": [CONTAINER], "nodeSelector": NOWHERE, "serviceAccountName": "runner", **more}
    return space.request("POST", path(space), {"metadata": {"name": name}, "spec": spec})


def bind(space: Space, name: str, node: str) -> Object:
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    return space.request("POST", path(space, name, "binding"), body)


def test_a_pod_is_bound_once_also_to_a_node_that_there_is_not(space: Space) -> None:
    pod(space, "p")
    assert bind(space, "p", "nowhere")["status"] == "Success"
    found = space.request("GET", path(space, "p"))
    assert found["spec"]["nodeName"] == "nowhere"
    scheduled = next(one for one in found["status"]["conditions"] if one["type"] == "PodScheduled")
    assert scheduled["status"] == "True"
    with pytest.raises(ApiException) as error:
        bind(space, "p", "elsewhere")
    assert refused(error)["reason"] == "Conflict"
    assert 'is already assigned to node "nowhere"' in refused(error)["message"]
    space.request("DELETE", path(space, "p"), {"gracePeriodSeconds": 0})


def test_a_pod_without_a_node_goes_at_once_and_one_with_a_node_waits_for_it(space: Space) -> None:
    pod(space, "free")
    space.request("DELETE", path(space, "free"))
    assert gone(lambda: space.request("GET", path(space, "free")))
    space.request("POST", path(space), {"metadata": {"name": "held"}, "spec": _spec()})
    bind(space, "held", "nowhere")
    space.request("DELETE", path(space, "held"), {"gracePeriodSeconds": 1})
    meta = space.request("GET", path(space, "held"))["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 1
    space.request("DELETE", path(space, "held"), {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
    assert gone(lambda: space.request("GET", path(space, "held")))


def _spec() -> Object:
    return {"containers": [CONTAINER], "nodeSelector": NOWHERE, "serviceAccountName": "runner"}


def test_an_evicted_pod_says_so(space: Space) -> None:
    pod(space, "p")
    bind(space, "p", "nowhere")
    space.request("PATCH", path(space, "p", "status"), {"status": {"phase": "Running"}}, "application/merge-patch+json")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    space.request("POST", path(space, "p", "eviction"), body)
    found = space.request("GET", path(space, "p"))
    assert "deletionTimestamp" in found["metadata"]
    disrupted = next(one for one in found["status"]["conditions"] if one["type"] == "DisruptionTarget")
    assert (disrupted["status"], disrupted["reason"]) == ("True", "EvictionByEvictionAPI")
    space.request("DELETE", path(space, "p"), {"gracePeriodSeconds": 0})


def test_a_job_that_is_deleted_without_a_word_leaves_its_dependents(space: Space) -> None:
    """So it has been since before there were owners; clients say what they mean."""
    made = space.batch.create_namespaced_job(space.name, job("j", "true", suspend=True))
    child = config_map("child")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "uid": made.metadata.uid}}
    child["metadata"]["ownerReferences"] = owned_by(owner)
    space.core.create_namespaced_config_map(space.name, child)
    space.request("DELETE", f"/apis/batch/v1/namespaces/{space.name}/jobs/j")
    assert "child pods are preserved by default when jobs are deleted" in space.warning
    eventually(lambda: gone(lambda: space.batch.read_namespaced_job("j", space.name)), seconds=90)
    assert space.core.read_namespaced_config_map("child", space.name).metadata.owner_references is None


@pytest.mark.parametrize(
    ("toleration", "field"),
    [
        ({"key": "gpu", "operator": "Exists", "value": "true"}, "operator"),
        ({"operator": "Equal", "value": "true"}, "operator"),
        ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}, "effect"),
    ],
)
def test_a_toleration_that_makes_no_sense_is_refused(space: Space, toleration: Object, field: str) -> None:
    with pytest.raises(ApiException) as error:
        space.batch.create_namespaced_job(space.name, job("j", "true", pod={"tolerations": [toleration]}))
    assert error.value.status == 422
    fields = [cause["field"] for cause in refused(error)["details"]["causes"]]
    assert f"spec.template.spec.tolerations[0].{field}" in fields
