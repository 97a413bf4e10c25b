"""What the API-level tests leave in a cluster: nothing, and what was there before as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kube
from kubernetes.client import ApiException

from services.operator.api import connect
from tests.kube.cluster import Cluster
from tests.kube.objects import Object, copy
from tests.kube.space import Space
from tests.kube.waiting import eventually, gone
from tests.operator_install import DEFINITIONS, TRAINER, WATCHERS, WORKERS, Installation, documents, kinds
from tests.operator_objects import GROUP, INFERENCE_SERVICES, PLURAL

CRD = f"{DEFINITIONS}/{PLURAL}.{GROUP[0]}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, controllers=("garbage", "jobs"), nodes=0) as cluster:
        yield cluster


def names(api: kube.ApiClient) -> set[str]:
    """Of everything cluster-wide that an installation makes."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    paths = (f"{rbac}/clusterroles", f"{rbac}/clusterrolebindings", "/api/v1/namespaces", DEFINITIONS)
    found = [one for path in paths for one in Space(api, "").request("GET", path)["items"]]
    return {one["metadata"]["name"] for one in found}


def test_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    api = cluster.client()
    before = names(api)
    with kinds(api):
        installed = Installation(api, "trial", tmp_path)
        installed.install()
        assert len(names(api) - before) > 5
        meta = {"name": "held", "finalizers": ["ziya.dev/stop-stages"]}
        body = {"apiVersion": "/".join(GROUP), "kind": "TrainingJob", "metadata": meta}
        spec: Object = {"model": {"checkpoint": "c"}, "stages": [{"name": "a", "type": "eval"}]}
        objects = kube.CustomObjectsApi(api)
        objects.create_namespaced_custom_object(*GROUP, "trial", PLURAL, {**body, "spec": spec})
        installed.remove()
        assert gone(lambda: kube.CoreV1Api(api).read_namespace("trial"))
    eventually(lambda: names(api) == before)


def test_an_older_definition_is_there_again_afterwards(cluster: Cluster) -> None:
    api = cluster.client()
    asked, older = Space(api, ""), copy(documents("crd.yaml")[0])
    schema = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["x-kubernetes-validations"]
    for definition in (older, INFERENCE_SERVICES):
        asked.request("POST", DEFINITIONS, definition)
    before = asked.request("GET", CRD)["spec"]
    with kinds(api):
        now = asked.request("GET", CRD)["spec"]
        assert "x-kubernetes-validations" in now["versions"][0]["schema"]["openAPIV3Schema"]
    assert asked.request("GET", CRD)["spec"] == before
    assert asked.request("GET", f"{DEFINITIONS}/{INFERENCE_SERVICES['metadata']['name']}")


def test_each_account_gets_its_own_rights_in_the_one_namespace(cluster: Cluster, tmp_path: Path) -> None:
    api = cluster.client()
    with kinds(api):
        installed = Installation(api, "trial", tmp_path)
        installed.install()
        assert installed.may(WORKERS, "create", "jobs", "batch")
        assert not installed.may(WATCHERS, "create", "jobs", "batch")
        assert not installed.may(TRAINER, "list", "pods")
        with connect(str(installed.kubeconfig(WORKERS))) as theirs:
            assert kube.BatchV1Api(theirs).list_namespaced_job("trial").items == []
            with pytest.raises(ApiException) as error:
                kube.BatchV1Api(theirs).list_namespaced_job("default")
            assert error.value.status == 403
            theirs.rest_client.pool_manager.clear()
        installed.remove()
