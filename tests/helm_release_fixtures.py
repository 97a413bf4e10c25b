"""Fixtures of the tests that install the chart: an API server, and whatever they bring to it taken away again.

With ZIYA_TEST_KUBECONFIG, an administrator's, it is that cluster, otherwise a `Cluster` of our own without nodes.
Test files take them by `pytest_plugins = ("tests.helm_release_fixtures",)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kubernetes import config as kube_config

from tests.helm_release import DEFINITION, Place, Releases
from tests.kube.cluster import Cluster
from tests.kube.space import REAL, Space
from tests.kube.waiting import eventually, gone


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Helm's cache of what a server offers is the test's own: ports are used again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECACHEDIR", str(tmp_path_factory.mktemp("discovery")))
        if REAL:
            api = kube_config.new_client_from_config(REAL)
            yield Place(api, Path(REAL))
            api.rest_client.pool_manager.clear()
            api.close()
            return
        with Cluster(tmp_path_factory.mktemp("cluster"), controllers=("garbage", "jobs"), nodes=0) as cluster:
            yield Place(cluster.client(), cluster.kubeconfig)


@pytest.fixture
def definition(place: Place) -> Iterator[Space]:
    """Helm leaves the definition of TrainingJobs, by design. One that was not there before goes here."""
    asked = Space(place.api, "")
    absent = gone(lambda: asked.request("GET", DEFINITION))
    before = None if absent else asked.request("GET", DEFINITION)["spec"]
    yield asked
    if before is not None:
        patch = [{"op": "replace", "path": "/spec", "value": before}]
        asked.request("PATCH", DEFINITION, patch, "application/json-patch+json")
    elif not gone(lambda: asked.request("GET", DEFINITION)):
        asked.request("DELETE", DEFINITION)
        eventually(lambda: gone(lambda: asked.request("GET", DEFINITION)), seconds=90)


@pytest.fixture
def releases(place: Place, definition: Space) -> Iterator[Releases]:
    with ExitStack() as stack:
        yield Releases(place, stack)
