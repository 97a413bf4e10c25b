"""A cluster in memory, for tests that stop a worker between any two of its API calls.

It answers the calls of services.operator.cluster.Cluster by the rules that the operator leans on (versions, conflicts,
uids, names that exist, deletion in the foreground); the same suite that runs over real HTTP checks these rules there.
What a Job controller, a kubelet, a queue and a user do to it are methods of their own. Time is a number of seconds.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from services.operator.children import CONTAINER
from services.operator.cluster import Conflict
from services.operator.status import stamp

Object = dict[str, Any]
START = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("default", "job", "uid-1")


def training_job(*stages: Mapping[str, Any], **spec: Any) -> Object:
    """As the API gives it, defaults of the schema left to the operator's."""
    whole = {"model": {"checkpoint": "initial"}, "output": {"pvc": "results"}, "stages": list(stages), **spec}
    meta = {"namespace": KEY[0], "name": KEY[1], "uid": KEY[2], "resourceVersion": "1", "generation": 1}
    return {"metadata": {**meta, "creationTimestamp": stamp(START)}, "spec": whole}


def merge(target: Object, patch: Mapping[str, Any]) -> Object:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            inner = target.get(key)
            target[key] = merge(inner if isinstance(inner, dict) else {}, value)
        else:
            target[key] = value
    return target


def _intents(status: Object) -> Iterator[str]:
    for stage in status.get("stages", []):
        if "jobName" in stage:
            yield stage["jobName"]
        if "canary" in stage:
            yield f"{stage['canary']['percent']} %"


def _versioned(objects: Iterable[Object]) -> list[Object]:
    """Copies, each with a version that follows from what it is."""
    copies = copy.deepcopy([*objects])
    for one in copies:
        one["metadata"]["resourceVersion"] = json.dumps(one, sort_keys=True)
    return copies


class Model:
    """`before_call` is called ahead of each API call, with its name: there a test lets others go first."""

    def __init__(self, job: Object, before_call: Callable[[str], None] = lambda name: None) -> None:
        self.job: Object | None = job
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.services: dict[str, Object] = {}
        self.inference: Object | None = None
        self.events: list[tuple[str, str]] = []
        self.ran: list[tuple[str, int, str]] = []
        self.said: set[str] = set()
        self.unsaid: list[str] = []
        self.now = START
        self._versions, self._uids = itertools.count(2), itertools.count(1)
        self._before = before_call

    # What the operator calls.

    def training_job(self, namespace: str, name: str) -> Object | None:
        self._before("get trainingjob")
        return copy.deepcopy(self.job) if self.job and self.job["metadata"]["name"] == name else None

    def jobs_of(self, namespace: str, uid: str) -> list[Object]:
        self._before("list jobs")
        return _versioned(self.jobs.values())

    def pods_of(self, namespace: str, uid: str) -> list[Object]:
        self._before("list pods")
        return _versioned(self.pods.values())

    def log_tail(self, namespace: str, pod: str) -> str:
        self._before("read log")
        return f"the log of {pod}" if pod in self.pods else ""

    def inference_service(self, namespace: str, name: str) -> Object | None:
        self._before("get inferenceservice")
        return copy.deepcopy(self.inference)

    def patch_status(self, namespace: str, name: str, version: str, status: Object) -> str:
        self._before("patch status")
        job = self.job
        if job is None or job["metadata"]["resourceVersion"] != version:
            raise Conflict("a newer version, or none")
        merge(job, {"status": copy.deepcopy(status)})
        self.said |= set(_intents(job["status"]))
        return self._touch(job)

    def set_finalizers(self, namespace: str, name: str, finalizers: Sequence[str], version: str) -> None:
        self._before("patch finalizers")
        if self.job is None:
            return
        if self.job["metadata"]["resourceVersion"] != version:
            raise Conflict("a newer version")
        self.job["metadata"]["finalizers"] = list(finalizers)
        self._touch(self.job)
        self._collect()

    def delete_training_job(self, namespace: str, name: str, uid: str) -> None:
        self._before("delete trainingjob")
        self.user_deletes()

    def create_job(self, namespace: str, body: Object) -> None:
        self._before("create job")
        name = body["metadata"]["name"]
        self._check(name)
        # The owner is gone: the garbage collector takes it at once.
        if self.job is not None and name not in self.jobs:
            body = copy.deepcopy(body)
            body["metadata"]["uid"] = f"job-{next(self._uids)}"
            self.jobs[name] = {**body, "status": {}}

    def create_service(self, namespace: str, body: Object) -> None:
        self._before("create service")
        self.services.setdefault(body["metadata"]["name"], body)

    def patch_job(self, namespace: str, name: str, body: Object) -> None:
        self._before("patch job")
        found = self.jobs.get(name)
        if found is not None and found["metadata"]["uid"] == body["metadata"]["uid"]:
            merge(found, body)

    def delete_job(self, namespace: str, name: str, uid: str) -> None:
        self._before("delete job")
        found = self.jobs.get(name)
        if found is not None and found["metadata"]["uid"] == uid:
            found["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            self._collect()

    def force_delete_pod(self, namespace: str, name: str, uid: str) -> None:
        self._before("delete pod")
        self.pods.pop(name, None)
        self._collect()

    def put_event(self, namespace: str, body: Object) -> None:
        self._before("put event")
        self.events.append((body["reason"], body["message"]))

    def create_inference_service(self, namespace: str, body: Object) -> None:
        self._before("create inferenceservice")
        self._check("100 %")
        if self.inference is None:
            body["metadata"]["generation"] = 1
            self.inference = copy.deepcopy(body)

    def patch_inference_service(self, namespace: str, name: str, body: Object) -> None:
        self._before("patch inferenceservice")
        assert self.inference is not None
        percent = body["spec"]["predictor"]["canaryTrafficPercent"]
        self._check(f"{100 if percent is None else percent} %")
        before = copy.deepcopy(self.inference["spec"])
        merge(self.inference, copy.deepcopy(body))
        if self.inference["spec"] != before:
            self.inference["metadata"]["generation"] += 1

    # What a cluster and its users do.

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def user_edits(self, **spec: Any) -> None:
        if self.job is not None:
            self.job["spec"] = {**self.job["spec"], **spec}
            self.job["metadata"]["generation"] += 1
            self._touch(self.job)

    def user_deletes(self) -> None:
        if self.job is not None:
            self.job["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            self._touch(self.job)
            self._collect()

    def start_pods(self) -> None:
        """The Job controller and a kubelet: a Job that may run gets its pods, and they run."""
        for name, job in self.jobs.items():
            if job["spec"]["suspend"] or "deletionTimestamp" in job["metadata"] or job["status"].get("startTime"):
                continue
            meta, nodes = job["metadata"], job["spec"]["completions"]
            labels = meta["labels"]
            self.ran.append((labels["ziya.dev/stage"], int(labels["ziya.dev/attempt"]), meta["uid"]))
            job["status"] |= {"startTime": stamp(self.now), "active": nodes}
            for index in range(nodes):
                own = {**labels, "batch.kubernetes.io/job-completion-index": str(index)}
                pod = {"name": f"{name}-{index}", "uid": f"pod-{next(self._uids)}", "labels": own}
                status = {"phase": "Running"}
                self.pods[pod["name"]] = {"metadata": pod, "spec": {"nodeName": "node"}, "status": status, "job": name}

    def end_pod(self, name: str, code: int, words: Any = "", *, evicted: bool = False, order: int = 0) -> None:
        """Its container ends."""
        status = self.pods[name]["status"]
        said = words if isinstance(words, str) else json.dumps(words)
        ended = {"exitCode": code, "finishedAt": stamp(self.now + timedelta(seconds=order)), "message": said}
        status["containerStatuses"] = [{"name": CONTAINER, "state": {"terminated": ended}}]
        status["phase"] = "Failed" if code else "Succeeded"
        if evicted:
            said = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "evicted",
            }
            status["conditions"] = [said]

    def settle_jobs(self) -> None:
        """The Job controller counts: all succeeded, or one failed, which first ends the others."""
        for name, job in self.jobs.items():
            pods = [pod for pod in self.pods.values() if pod["job"] == name]
            conditions = job["status"].setdefault("conditions", [])
            if not pods or any(one["type"] in ("Complete", "Failed") for one in conditions):
                continue
            phases = [pod["status"]["phase"] for pod in pods]
            if "Failed" in phases and not conditions:
                conditions.append({"type": "FailureTarget", "status": "True", "message": "a pod failed"})
                for pod in pods:
                    if pod["status"]["phase"] == "Running":
                        pod["metadata"]["deletionTimestamp"] = stamp(self.now)
            elif conditions and "Running" not in phases:
                conditions.append({"type": "Failed", "status": "True", "message": "a pod failed"})
            elif all(phase == "Succeeded" for phase in phases):
                conditions.append({"type": "Complete", "status": "True", "message": ""})
            job["status"]["active"] = sum(phase == "Running" for phase in phases)

    def kubelet_stops(self) -> None:
        """Pods that are to go have saved and ended; those of deleted Jobs are removed."""
        for name, pod in [*self.pods.items()]:
            job = self.jobs.get(pod["job"])
            going = job is None or "deletionTimestamp" in job["metadata"] or "deletionTimestamp" in pod["metadata"]
            if going and pod["status"]["phase"] == "Running":
                self.end_pod(name, 75, {"code": 75, "reason": "stopped", "step": 1}, order=1)
            if job is None or "deletionTimestamp" in job["metadata"]:
                del self.pods[name]
        self._collect()

    def kserve_works(self, *, ready: bool = True) -> None:
        """The newest revision serves, or does not."""
        if self.inference is not None:
            revisions = {"latestCreatedRevision": "1", "latestReadyRevision": "1"}
            self.inference["status"] = {
                "observedGeneration": self.inference["metadata"]["generation"],
                "conditions": [{"type": "Ready", "status": "True" if ready else "False", "message": "starting"}],
                "components": {"predictor": revisions},
            }

    def _check(self, intent: str) -> None:
        """What is done must have been said in a status before, by somebody."""
        if intent not in self.said:
            self.unsaid.append(intent)

    def _touch(self, job: Object) -> str:
        job["metadata"]["resourceVersion"] = str(next(self._versions))
        return str(job["metadata"]["resourceVersion"])

    def _collect(self) -> None:
        """Objects that nothing holds any more are gone, and what they own with them."""
        if self.job and "deletionTimestamp" in self.job["metadata"] and not self.job["metadata"].get("finalizers"):
            self.job = None
        for name, job in [*self.jobs.items()]:
            if self.job is None:
                job["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            held = any(pod["job"] == name for pod in self.pods.values())
            if "deletionTimestamp" in job["metadata"] and not held:
                del self.jobs[name]
