"""TrainingJobs on a cluster, through the official client. Every method raises CommandError with a plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kubernetes.client import CoreV1Api, CustomObjectsApi, V1ObjectMeta, V1Pod
from kubernetes.client.exceptions import ApiException

from cli.cluster import Cluster, plainly, said_by
from cli.text import CommandError

GROUP, VERSION, PLURAL = "ziya.dev", "v1alpha1", "trainingjobs"
CONTAINER = "trainer"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
TIMEOUT = (5.0, 30.0)
Object = dict[str, Any]


class TrainingJobs:
    """Of one namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._jobs, self._core = CustomObjectsApi(cluster.api), CoreV1Api(cluster.api)
        self._place: dict[str, Any] = {
            "group": GROUP,
            "version": VERSION,
            "namespace": cluster.namespace,
            "plural": PLURAL,
        }

    def create(self, body: Mapping[str, Any]) -> None:
        with plainly(self.cluster, self._called(body["metadata"]["name"])):
            self._jobs.create_namespaced_custom_object(
                **self._place, body=dict(body), field_validation="Strict", _request_timeout=TIMEOUT
            )

    def get(self, name: str) -> Object:
        with plainly(self.cluster, self._called(name)):
            found = self._jobs.get_namespaced_custom_object(**self._place, name=name, _request_timeout=TIMEOUT)
            return cast("Object", found)

    def listed(self, *, everywhere: bool = False) -> list[Object]:
        with plainly(self.cluster, "list of training jobs"):
            if everywhere:
                found: Any = self._jobs.list_cluster_custom_object(GROUP, VERSION, PLURAL, _request_timeout=TIMEOUT)
            else:
                found = self._jobs.list_namespaced_custom_object(**self._place, _request_timeout=TIMEOUT)
            return cast("list[Object]", found["items"])

    def set_suspend(self, name: str, suspend: bool) -> None:
        with plainly(self.cluster, self._called(name)):
            self._jobs.patch_namespaced_custom_object(
                **self._place, name=name, body={"spec": {"suspend": suspend}}, _request_timeout=TIMEOUT
            )

    def pods(self, job: Object, stage: str, attempt: int) -> list[str]:
        """Names of the pods of one attempt, the first node's first."""
        labels = {"job-uid": job["metadata"]["uid"], "stage": stage, "attempt": attempt}
        selector = ",".join(f"{GROUP}/{name}={value}" for name, value in labels.items())
        with plainly(self.cluster, f"list of the pods of {job['metadata']['name']}"):
            found = self._core.list_namespaced_pod(
                self.cluster.namespace, label_selector=selector, _request_timeout=TIMEOUT
            )
        places = sorted(_place(pod) for pod in found.items)
        return [name for _, name in places]

    def has_pod(self, name: str) -> bool:
        with plainly(self.cluster, f"pod {name}"):
            try:
                self._core.read_namespaced_pod(name, self.cluster.namespace, _request_timeout=TIMEOUT)
            except ApiException as error:
                if error.status == 404:
                    return False
                raise
        return True

    def log(self, pod: str, *, follow: bool) -> Any:
        """A response to read from; None while the container has not started or when the pod is gone."""
        # Who follows waits for as long as nothing is printed.
        limits: dict[str, Any] = {} if follow else {"_request_timeout": TIMEOUT}
        with plainly(self.cluster, f"log of pod {pod}"):
            try:
                return self._core.read_namespaced_pod_log(
                    pod, self.cluster.namespace, container=CONTAINER, follow=follow, _preload_content=False, **limits
                )
            except ApiException as error:
                if error.status == 404 or (error.status == 400 and "waiting to start" in _message(error)):
                    return None
                raise

    def _called(self, name: str) -> str:
        return f"training job {name!r} in namespace {self.cluster.namespace}"


def stage_of(job: Object, name: str | None) -> tuple[Object, Object]:
    """Spec and status of a stage, by default of the one that the job is at. Raises CommandError where there is none."""
    stages, states = job["spec"]["stages"], job.get("status", {}).get("stages", [])
    wanted = name or job.get("status", {}).get("currentStage") or stages[0]["name"]
    spec = next((stage for stage in stages if stage["name"] == wanted), None)
    if spec is None:
        names = ", ".join(stage["name"] for stage in stages)
        raise CommandError(f"training job {job['metadata']['name']!r} has no stage {wanted!r}; its stages are {names}")
    return spec, next((state for state in states if state["name"] == wanted), {"name": wanted})


def is_over(job: Object) -> bool:
    return job.get("status", {}).get("phase") in ("Complete", "Failed")


def _place(pod: V1Pod) -> tuple[int, str]:
    """Which node of the gang it is, and its name."""
    meta = pod.metadata or V1ObjectMeta()
    return int((meta.annotations or {}).get(COMPLETION_INDEX, 0)), str(meta.name)


def _message(error: ApiException) -> str:
    return str(said_by(error).get("message", ""))
