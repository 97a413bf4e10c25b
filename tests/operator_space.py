"""The operator in a namespace of its own, in a real cluster or in the tests' own: what the API-level tests act on.

With ZIYA_TEST_KUBECONFIG, an administrator's, it is in that cluster, otherwise in a `Cluster` with a Job controller and
a garbage collector and no nodes. Nothing is used but the Kubernetes API; pods are run by the test (operator_kubelet).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kube
from kubernetes.watch import Watch

from tests.kube.objects import Object
from tests.kube.space import REAL, Space
from tests.operator_install import Installation
from tests.operator_kubelet import NOWHERE, Kubelet
from tests.operator_objects import OperatorObjects
from tests.operator_programs import WATCHER, WORKER

# A real cluster has our kinds once, so one process after another changes it.
GROUP_OF_TESTS = "operator-api"


def marks(module: str) -> list[pytest.MarkDecorator]:
    """Of a test module: one process runs it, and a real cluster may take its time."""
    return [pytest.mark.xdist_group(GROUP_OF_TESTS if REAL else module), pytest.mark.timeout(300)]


class OperatorSpace(OperatorObjects):
    """`with` installs and starts; at the end nothing of it is left."""

    node_selector = NOWHERE

    def __init__(self, api: kube.ApiClient, folder: Path, **settings: str) -> None:
        self.api, self.namespace = api, f"ziya-operator-{uuid.uuid4().hex[:8]}"
        times = {"ZIYA_OPERATOR_RESYNC_SECONDS": "0.5", "ZIYA_OPERATOR_NODE_LOST_SECONDS": "1"}
        super().__init__(folder, {**times, "ZIYA_OPERATOR_NAMESPACE": self.namespace, **settings})
        self.space = Space(api, self.namespace)
        self.kubelet = Kubelet(self.space)
        self.installed = Installation(api, self.namespace, folder)

    def __enter__(self) -> OperatorSpace:
        self.redis.start()
        self.installed.install()
        self.start(WATCHER)
        self.start(WORKER)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.installed.remove()

    def kubeconfig(self, account: str) -> Path:
        return self.installed.kubeconfig(account)

    def tend(self) -> None:
        self.check()
        self.kubelet.tend()

    def attempt(self, job: str, stage: str, attempt: int = 1, nodes: int = 1) -> list[Object]:
        """Its pods, once they are there; they run from now on, and the operator knows."""

        def there() -> list[Object]:
            found = self.kubelet.pods(job, stage, attempt)
            return found if len(found) == nodes else []

        pods = [self.kubelet.run(pod) for pod in self.until(there, job)]
        self.state(job, stage, "Running", attempt=attempt)
        return pods

    def child(self, job: str, stage: str, attempt: int = 1) -> Object | None:
        """The Job of an attempt."""
        labels = f"ziya.dev/job={job},ziya.dev/stage={stage},ziya.dev/attempt={attempt}"
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        return next(iter(self.space.request("GET", path, labelSelector=labels)["items"]), None)

    def state(self, job: str, stage: str, phase: str, **fields: Any) -> Object:
        """The stage in the status, once it has that phase and those fields."""
        wanted = {"phase": phase, **fields}

        def there() -> Object:
            found = self.stage(job, stage)
            return found if all(found.get(name) == value for name, value in wanted.items()) else {}

        found: Object = self.until(there, job)
        return found


class History:
    """What happens to the objects of a collection, in order, none left out."""

    def __init__(self, listing: Callable[..., Any], *where: str) -> None:
        self._listing, self._where = listing, where
        made = listing(*where)
        self._since = made["metadata"]["resourceVersion"] if isinstance(made, dict) else made.metadata.resource_version

    def until(self, last: Callable[[str, Object], bool], seconds: int = 60) -> list[tuple[str, Object]]:
        """Types and objects, up to the last one that counts."""
        found, watch = list[tuple[str, Object]](), Watch()  # type: ignore[no-untyped-call]
        how = {"resource_version": self._since, "timeout_seconds": seconds}
        for event in watch.stream(self._listing, *self._where, **how):  # type: ignore[no-untyped-call]
            found.append((event["type"], event["raw_object"]))
            if last(*found[-1]):
                watch.stop()  # type: ignore[no-untyped-call]
                return found
        raise AssertionError(f"the last event has not come in {seconds} s: {[kind for kind, _ in found]}")
