"""Fixtures of the contract tests: a namespace of one's own, in a real cluster or in the tests' own.

Test files take them by `pytest_plugins = ("tests.kube.space_fixtures",)`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from kubernetes import client as kube
from kubernetes import config as kube_config
from kubernetes.client import ApiException

from tests.kube.cluster import Cluster
from tests.kube.samples import gadget_definition
from tests.kube.space import PLACE, REAL, Space
from tests.kube.waiting import eventually


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kube.ApiClient]:
    if REAL:
        client = kube_config.new_client_from_config(REAL)
        yield client
        client.rest_client.pool_manager.clear()
        client.close()
        return
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster.client()


@pytest.fixture(scope="module")
def gadgets(admin: kube.ApiClient) -> Iterator[None]:
    """The kind is there and is served."""
    extensions = kube.ApiextensionsV1Api(admin)
    name = gadget_definition()["metadata"]["name"]

    def going() -> bool:
        found = extensions.list_custom_resource_definition(field_selector=f"metadata.name={name}").items
        return any(one.metadata.deletion_timestamp for one in found)

    eventually(lambda: not going())  # of the tests before these
    try:
        extensions.create_custom_resource_definition(gadget_definition())
    except ApiException as error:
        if error.status != 409:  # another process of the same run was first
            raise

    def established() -> bool:
        conditions = extensions.read_custom_resource_definition(name).status.conditions or []
        return any(one.type == "Established" and one.status == "True" for one in conditions)

    eventually(established)
    objects = kube.CustomObjectsApi(admin)
    eventually(lambda: objects.list_cluster_custom_object(*PLACE, "gadgets"))
    yield
    if os.environ.get("PYTEST_XDIST_WORKER") is None:
        extensions.delete_custom_resource_definition(name)


@pytest.fixture
def space(admin: kube.ApiClient, gadgets: None) -> Iterator[Space]:
    name = f"contract-{uuid.uuid4().hex[:10]}"
    core = kube.CoreV1Api(admin)
    core.create_namespace({"metadata": {"name": name}})
    try:
        core.create_namespaced_service_account(name, {"metadata": {"name": "default"}})
    except ApiException as error:
        if error.status != 409:  # the controller of accounts was first, where one runs
            raise
    yield Space(admin, name)
    core.delete_namespace(name)
