"""The tests' cluster watched by the real kopf: what happens is heard of, also after cut watches and a lost past."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kopf
import pytest
from kubernetes import client as kube

from tests.kube.cluster import Cluster
from tests.kube.objects import Object
from tests.kube.samples import GROUP, gadget, gadget_definition, job
from tests.kube.waiting import eventually

PLACE = (GROUP, "v1alpha1", "default", "gadgets")
LABEL = "test.ziya.dev/of"


class Operator:
    """Handlers that write down what they hear; the operator runs on a loop in a thread of its own."""

    def __init__(self, cluster: Cluster, namespace: str | None) -> None:
        self.heard: list[tuple[str | None, str, str]] = []
        self._cluster, self._namespace = cluster, namespace
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf")

    def knows(self, kind: str, name: str, *types: str | None) -> bool:
        return any(what == kind and who == name and how in types for how, what, who in list(self.heard))

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.startup(registry=registry)  # type: ignore[arg-type]
        def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.posting.enabled = False
            settings.watching.reconnect_backoff = 0.05
            settings.networking.error_backoffs = [0.05] * 20

        @kopf.on.login(registry=registry)  # type: ignore[arg-type]
        def login(**_: Any) -> kopf.ConnectionInfo:
            token, trusted = self._cluster.admin_token, str(self._cluster.ca_file)
            return kopf.ConnectionInfo(server=self._cluster.url, ca_path=trusted, scheme="Bearer", token=token)

        def hear(event: Any, body: kopf.Body, **_: Any) -> None:
            self.heard.append((event["type"], body["kind"], body["metadata"]["name"]))

        kopf.on.event(GROUP, "v1alpha1", "gadgets", registry=registry)(hear)
        kopf.on.event("batch", "v1", "jobs", registry=registry, labels={LABEL: kopf.PRESENT})(hear)
        kopf.on.event("", "v1", "pods", registry=registry, labels={LABEL: kopf.PRESENT})(hear)
        return registry

    def _run(self) -> None:
        asyncio.run(self._operate())

    async def _operate(self) -> None:
        await kopf.operator(
            registry=self._registry(),
            standalone=True,
            clusterwide=self._namespace is None,
            namespaces=[self._namespace] if self._namespace else [],
            ready_flag=self._ready,
            stop_flag=self._stop,
        )
        await asyncio.sleep(0.25)  # aiohttp's TLS connections close after their session

    @contextmanager
    def running(self) -> Iterator[Operator]:
        self._thread.start()
        try:
            assert self._ready.wait(30)
            eventually(lambda: {"gadgets", "jobs", "pods"} <= set(self._cluster.faults.open_watches))
            yield self
        finally:
            self._stop.set()
            self._thread.join()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        kube.ApiextensionsV1Api(cluster.client()).create_custom_resource_definition(gadget_definition())
        eventually(lambda: kube.CustomObjectsApi(cluster.client()).list_namespaced_custom_object(*PLACE))
        yield cluster


def create(cluster: Cluster, name: str) -> Object:
    made: Object = kube.CustomObjectsApi(cluster.client()).create_namespaced_custom_object(*PLACE, gadget(name, "one"))
    return made


def labelled_job(name: str) -> Object:
    made = job(name, "true")
    made["metadata"]["labels"] = {LABEL: "a"}
    made["spec"]["template"]["metadata"] = {"labels": {LABEL: "a"}}
    return made


@pytest.mark.parametrize("namespace", [None, "default"])
def test_it_hears_of_resources_jobs_and_pods(cluster: Cluster, namespace: str | None) -> None:
    create(cluster, "before")
    with Operator(cluster, namespace).running() as operator:
        eventually(lambda: operator.knows("Gadget", "before", None))
        create(cluster, "after")
        eventually(lambda: operator.knows("Gadget", "after", "ADDED"))
        batch = kube.BatchV1Api(cluster.client())
        batch.create_namespaced_job("default", labelled_job("j"))
        batch.create_namespaced_job("default", job("unlabelled", "true"))
        eventually(lambda: operator.knows("Job", "j", "ADDED"))
        eventually(lambda: any(kind == "Pod" and name.startswith("j-") for _, kind, name in list(operator.heard)))
        eventually(lambda: operator.knows("Job", "j", "MODIFIED"))
        kube.CustomObjectsApi(cluster.client()).delete_namespaced_custom_object(*PLACE, "after")
        eventually(lambda: operator.knows("Gadget", "after", "DELETED"))
        assert not any(name.startswith("unlabelled") for _, _, name in operator.heard)


def test_it_survives_cut_watches_and_a_lost_past(cluster: Cluster) -> None:
    with Operator(cluster, None).running() as operator:
        create(cluster, "first")
        eventually(lambda: operator.knows("Gadget", "first", "ADDED"))
        assert cluster.faults.drop_watches("gadgets") == 1
        create(cluster, "second")
        eventually(lambda: operator.knows("Gadget", "second", "ADDED", None))
        create(cluster, "unseen")
        cluster.compact()
        cluster.faults.drop_watches()
        create(cluster, "third")
        eventually(lambda: operator.knows("Gadget", "third", "ADDED", None))


def test_it_survives_a_partition_and_errors(cluster: Cluster) -> None:
    with Operator(cluster, None).running() as operator:
        with cluster.faults.partitioned():
            cluster.call(
                lambda: cluster.api.create(cluster.api.kinds[f"gadgets.{GROUP}"], "default", gadget("a", "one"))
            )
        eventually(lambda: operator.knows("Gadget", "a", "ADDED", None))
        cluster.faults.fail(503, verb="watch", times=3)
        cluster.faults.drop_watches()
        create(cluster, "b")
        eventually(lambda: operator.knows("Gadget", "b", "ADDED", None))
