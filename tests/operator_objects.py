"""The objects of one namespace with which people and KServe meet the operator, and waiting for what becomes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, ClassVar

from kubernetes import client as kube
from kubernetes.client.exceptions import ApiException

from tests.kube.objects import Object
from tests.operator_programs import WATCHER, WORKER, Programs

GROUP, PLURAL = ("ziya.dev", "v1alpha1"), "trainingjobs"
KSERVE, SERVICES = ("serving.kserve.io", "v1beta1"), "inferenceservices"
MERGE = "application/merge-patch+json"
NAMESPACE, CLAIM = "default", "results"
OVER = ("Complete", "Failed")

INFERENCE_SERVICES: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{SERVICES}.{KSERVE[0]}"},
    "spec": {
        "group": KSERVE[0],
        "scope": "Namespaced",
        "names": {"kind": "InferenceService", "plural": SERVICES, "singular": "inferenceservice"},
        "versions": [
            {
                "name": KSERVE[1],
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def until(reached: Callable[[], Any], seconds: float = 60, otherwise: Callable[[], str] = lambda: "not reached") -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := reached()):
        if time.monotonic() > end:
            raise AssertionError(otherwise())
        time.sleep(0.05)
    return answer


class OperatorObjects(Programs):
    """`api` is an administrator's."""

    api: kube.ApiClient
    namespace, claim = NAMESPACE, CLAIM
    node_selector: ClassVar[dict[str, str]] = {}

    @property
    def objects(self) -> Any:
        """Its answers are plain dicts."""
        return kube.CustomObjectsApi(self.api)

    @property
    def core(self) -> kube.CoreV1Api:
        return kube.CoreV1Api(self.api)

    @property
    def batch(self) -> kube.BatchV1Api:
        return kube.BatchV1Api(self.api)

    # TrainingJobs.

    def submit(self, name: str, *stages: Object, **spec: Any) -> Object:
        pod = {"nodeSelector": self.node_selector, **spec.pop("pod", {})}
        fixed = {"model": {"checkpoint": "initial"}, "output": {"pvc": self.claim}, "pod": pod}
        body = {
            "apiVersion": "/".join(GROUP),
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": {**fixed, "stages": list(stages), **spec},
        }
        made: Object = self.objects.create_namespaced_custom_object(*GROUP, self.namespace, PLURAL, body)
        return made

    def job(self, name: str) -> Object:
        found: Object = self.objects.get_namespaced_custom_object(*GROUP, self.namespace, PLURAL, name)
        return found

    def edit(self, name: str, **spec: Any) -> None:
        self.objects.patch_namespaced_custom_object(
            *GROUP, self.namespace, PLURAL, name, {"spec": spec}, _content_type=MERGE
        )

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(*GROUP, self.namespace, PLURAL, name)

    def status(self, name: str) -> Object:
        return self.job(name).get("status") or {}

    def stage(self, name: str, stage: str) -> Object:
        return next((one for one in self.status(name).get("stages", []) if one["name"] == stage), {})

    def condition(self, name: str, kind: str) -> Object:
        return next((one for one in self.status(name).get("conditions", []) if one["type"] == kind), {})

    # InferenceServices.

    def inference(self, name: str) -> Object | None:
        try:
            found: Object = self.objects.get_namespaced_custom_object(*KSERVE, self.namespace, SERVICES, name)
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        return found

    def make_ready(self, name: str) -> None:
        """What KServe says when the newest revision serves."""
        found = self.inference(name)
        assert found is not None
        component = {"latestCreatedRevision": "1", "latestReadyRevision": "1"}
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "conditions": [{"type": "Ready", "status": "True"}],
            "components": {"predictor": component},
        }
        self.objects.patch_namespaced_custom_object_status(
            *KSERVE, self.namespace, SERVICES, name, {"status": status}, _content_type=MERGE
        )

    # Waiting, and what is told.

    def tend(self) -> None:
        """What goes on in the cluster while one waits, where nobody else does it."""

    def until(self, reached: Callable[[], Any], name: str = "", seconds: float = 100) -> Any:
        """The first true answer; `name` is the job whose story a failure tells."""

        def tended() -> Any:
            self.tend()
            return reached()

        return until(tended, seconds, lambda: f"not within {seconds} s: {self.story(name)}")

    def reach(self, name: str, phase: str, seconds: float = 100) -> Object:
        """Waits for the job's phase; another end than that one fails at once."""

        def there() -> bool:
            now = self.status(name).get("phase")
            if now in OVER and now != phase:
                raise AssertionError(f"{name} is {now}:\n{self.story(name)}")
            return bool(now == phase)

        self.until(there, name, seconds)
        return self.job(name)

    def story(self, name: str = "") -> str:
        """Everything known, for a test that failed."""
        logs = "\n".join(f"== {program}\n{self.log(program)[-6000:]}" for program in (WATCHER, WORKER))
        pods: list[Any] = self.core.list_namespaced_pod(self.namespace).items
        said = [f"{pod.metadata.name} {pod.status.phase}" for pod in pods]
        try:
            status = json.dumps(self.status(name), indent=1) if name else ""
        except ApiException as error:
            status = f"{name}: {error.reason}"
        return f"{status}\n{said}\n{logs}"

    def tell(self, name: str, *reasons: str) -> None:
        """Waits for Events of these reasons: they come after the status that they tell of."""
        self.until(lambda: {*reasons} <= {event.partition(":")[0] for event in self.events(name)}, name)

    def events(self, name: str = "") -> list[str]:
        """What the operator told, of one job or of all."""
        found: list[Any] = self.core.list_namespaced_event(self.namespace).items
        return [
            f"{event.reason}: {event.message}"
            for event in found
            if event.source.component == "ziya-operator" and name in ("", event.involved_object.name)
        ]
