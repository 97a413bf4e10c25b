"""Fixtures of the tests in which pods run: a cluster and its clients.

Test files take them by `pytest_plugins = ("tests.kube.work_fixtures",)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kube

from tests.kube.cluster import Cluster
from tests.kube.processes import marked


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster
        uids = cluster.call(lambda: [pod["metadata"]["uid"] for pod in cluster.api.store.listed(("", "pods"))])
    assert not [pid for uid in uids for pid in marked(uid)]


@pytest.fixture
def core(cluster: Cluster) -> kube.CoreV1Api:
    return kube.CoreV1Api(cluster.client())


@pytest.fixture
def batch(cluster: Cluster) -> kube.BatchV1Api:
    return kube.BatchV1Api(cluster.client())
