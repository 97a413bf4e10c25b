"""What the tests in which pods run ask of Jobs and pods."""

from __future__ import annotations

from typing import Any

from kubernetes import client as kube

from tests.kube.waiting import eventually

NS = "default"
WAIT = "trap 'exit 75' TERM; while true; do sleep 0.05; done"
DISRUPTED = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def ended(batch: kube.BatchV1Api, name: str = "j") -> Any:
    """The Job, once it is complete or failed."""

    def look() -> Any:
        found = batch.read_namespaced_job(name, NS)
        return found if reason(found, "Complete", "Failed") else None

    return eventually(look)


def reason(found: Any, *kinds: str) -> str:
    """Why the first of these conditions is true; "" if none is."""
    conditions = found.status.conditions or []
    return next((one.reason for one in conditions if one.type in kinds and one.status == "True"), "")


def pods(core: kube.CoreV1Api) -> list[Any]:
    return sorted(core.list_namespaced_pod(NS).items, key=lambda pod: pod.metadata.name)


def running(core: kube.CoreV1Api, count: int = 1) -> list[Any]:
    def look() -> list[Any]:
        found = [pod for pod in pods(core) if pod.status.phase == "Running"]
        return found if len(found) == count else []

    return eventually(look)


def terminated(pod: Any) -> Any:
    return pod.status.container_statuses[0].state.terminated
