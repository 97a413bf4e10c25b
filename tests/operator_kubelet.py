"""What a kubelet does for a pod, done by a test through the API: where no kubelet runs, or none that has that node.

Pods are bound to a node that there is not, so no other kubelet takes them. How a container ends is what the test says;
a pod that is being deleted stops as the trainer does, with code 75 after a checkpoint, unless its node is lost.
"""

from __future__ import annotations

import json
from datetime import timedelta

from kubernetes.client import ApiException

from services.operator.children import ATTEMPT, CONTAINER, JOB, STAGE
from tests.kube.job_pods import index_of, is_over
from tests.kube.objects import Object, dig, is_deleting, parse_time, timestamp
from tests.kube.space import Space
from tests.operator_objects import MERGE

NOWHERE = {"test.ziya.dev/node": "there-is-none"}
STOPPED = {"code": 75, "error": "Stopped", "reason": "stopped after a checkpoint", "step": 7}


class Kubelet:
    """Of all pods in a namespace. `lost` are the names of pods whose node is gone, `kept` of those it has not removed
    yet."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.lost: set[str] = set()
        self.kept: set[str] = set()

    def pods(self, job: str = "", stage: str = "", attempt: int = 0) -> list[Object]:
        """By their index; the labels are those that the operator gives."""
        wanted = {JOB: job, STAGE: stage, ATTEMPT: str(attempt or "")}
        selector = ",".join(f"{key}={value}" for key, value in wanted.items() if value)
        found = self._space.request("GET", self._path(), labelSelector=selector)["items"]
        return sorted(found, key=index_of)

    def run(self, pod: Object) -> Object:
        """On its node, started."""
        target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{self._space.name}"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}, "target": target}
        self._space.request("POST", self._path(pod, "binding"), body)
        return self._write(pod, "Running", {"running": {"startedAt": timestamp()}})

    def end(self, pod: Object, code: int, words: Object | str = "", finished: str = "") -> Object:
        """The trainer's process has ended; `words` are its last."""
        message = words if isinstance(words, str) else json.dumps(words)
        finished = finished or timestamp()
        state = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "message": message,
            "startedAt": finished,
            "finishedAt": finished,
        }
        return self._write(pod, "Failed" if code else "Succeeded", {"terminated": state})

    def succeed(self, pod: Object, **words: object) -> Object:
        return self.end(pod, 0, {"code": 0, **words})

    def evict(self, pod: Object) -> None:
        """What draining a node asks for."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}}
        self._space.request("POST", self._path(pod, "eviction"), body)

    def delete(self, pod: Object, grace: int) -> None:
        body = {"gracePeriodSeconds": grace, "preconditions": {"uid": pod["metadata"]["uid"]}}
        self._space.request("DELETE", self._path(pod), body)

    def tend(self) -> None:
        """Ends what is being deleted, and removes it when it has ended."""
        for pod in self.pods():
            name = pod["metadata"]["name"]
            if not is_deleting(pod) or name in self.lost:
                continue
            try:
                if not is_over(pod):
                    self.end(pod, 75, STOPPED, _after(pod))
                elif name not in self.kept and pod["metadata"].get("deletionGracePeriodSeconds"):
                    self.delete(pod, 0)
            except ApiException as error:
                if error.status not in (404, 409):  # it has gone meanwhile
                    raise

    def _write(self, pod: Object, phase: str, state: Object) -> Object:
        """The lists of a status are written whole."""
        now = self._space.request("GET", self._path(pod))
        running = "running" in state
        container = next(one for one in now["spec"]["containers"] if one["name"] == CONTAINER)
        told = {
            "name": CONTAINER,
            "image": container["image"],
            "imageID": "",
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": state,
            "lastState": {},
        }
        others = [one for one in dig(now, "status", "conditions", default=[]) if one["type"] != "Ready"]
        ready = {"type": "Ready", "status": "True" if running else "False", "lastTransitionTime": timestamp()}
        status = {"phase": phase, "conditions": [*others, ready], "containerStatuses": [told]}
        body = {"metadata": {"uid": now["metadata"]["uid"]}, "status": status}
        return self._space.request("PATCH", self._path(pod, "status"), body, MERGE)

    def _path(self, pod: Object | None = None, sub: str = "") -> str:
        steps = ["/api/v1/namespaces", self._space.name, "pods", pod["metadata"]["name"] if pod else "", sub]
        return "/".join(step for step in steps if step)


def _after(pod: Object) -> str:
    """A second after it was told to stop: to save takes some time."""
    meta = pod["metadata"]
    told = parse_time(meta["deletionTimestamp"]) - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)
    return timestamp(told + timedelta(seconds=1))
