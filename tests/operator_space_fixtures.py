"""Fixtures of the operator's API-level tests: one running operator a module, in a namespace of its own.

Test files take them by `pytest_plugins = ("tests.operator_space_fixtures",)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kubernetes import client as kube

from services.operator.api import connect
from tests.kube.cluster import Cluster
from tests.kube.space import REAL
from tests.operator_install import kinds
from tests.operator_space import OperatorSpace


@pytest.fixture(scope="session")
def real_cluster() -> Iterator[kube.ApiClient | None]:
    """With our kinds, as long as tests run: its garbage collector takes half a minute to learn of new ones."""
    if not REAL:
        yield None
        return
    client = connect(REAL)
    with kinds(client):
        yield client
    client.rest_client.pool_manager.clear()
    client.close()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def space(real_cluster: kube.ApiClient | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorSpace]:
    with ExitStack() as stack:
        api = real_cluster
        if api is None:
            folder = tmp_path_factory.mktemp("cluster")
            api = stack.enter_context(Cluster(folder, controllers=("garbage", "jobs"), nodes=0)).client()
            stack.enter_context(kinds(api))
        yield stack.enter_context(OperatorSpace(api, tmp_path_factory.mktemp("operator")))
