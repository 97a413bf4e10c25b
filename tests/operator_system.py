"""The operator as it runs in production: a watcher and a Celery worker as processes, on a real Redis and an API server.

The API server is the tests' own (tests/kube), whose kubelet runs pods as local processes. Each program has an account
of its own with the rights of deploy/operator/rbac.yaml, and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, utils
from kubernetes.client.exceptions import ApiException

from tests.kube.cluster import Cluster
from tests.redis_server import RedisServer
from ziya.leash import on_leash

ROOT = Path(__file__).parent.parent
SYSTEM, NAMESPACE, CLAIM = "ziya-system", "default", "results"
GROUP = ("ziya.dev", "v1alpha1")
MERGE = "application/merge-patch+json"
KSERVE = ("serving.kserve.io", "v1beta1")

INFERENCE_SERVICES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "inferenceservices.serving.kserve.io"},
    "spec": {
        "group": KSERVE[0],
        "scope": "Namespaced",
        "names": {"kind": "InferenceService", "plural": "inferenceservices", "singular": "inferenceservice"},
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OperatorSystem:
    """`with` starts everything. Times of the operator are short, so that tests are."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        (folder / "redis").mkdir(parents=True)
        (folder / "kube").mkdir()
        self.redis = RedisServer(folder / "redis")
        self.cluster = Cluster(folder / "kube", variables={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
        self.port = free_port()
        self.settings = {
            "ZIYA_OPERATOR_BROKER_URL": self.redis.url,
            "ZIYA_OPERATOR_RESYNC_SECONDS": "2",
            "ZIYA_OPERATOR_PROGRESS_SECONDS": "0.2",
            "ZIYA_OPERATOR_PROGRESS_PORT": str(self.port),
            "ZIYA_OPERATOR_PROGRESS_URL": f"http://127.0.0.1:{self.port}",
            "ZIYA_OPERATOR_RENDEZVOUS_PORT": str(free_port()),
            "ZIYA_OPERATOR_CLAIMS_FOLDER": str(folder / "kube" / "claims"),
            "ZIYA_OPERATOR_HEARTBEAT_FILE": str(folder / "heartbeat"),
            **settings,
        }
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> OperatorSystem:
        self.redis.start()
        self.cluster.start()
        self.api = self.cluster.client()
        self.objects = client.CustomObjectsApi(self.api)
        self._install()
        self.start("watcher")
        self.start("worker")
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.programs]:
            self.kill(name)
        self.cluster.stop()
        self.redis.kill()

    def _install(self) -> None:
        """The CRDs, the accounts and their rights, as an administrator does."""
        core = client.CoreV1Api(self.api)
        core.create_namespace({"metadata": {"name": SYSTEM}})
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        core.create_namespaced_persistent_volume_claim(NAMESPACE, {"metadata": {"name": CLAIM}, "spec": claim})
        documents = [yaml.safe_load((ROOT / "deploy/operator/crd.yaml").read_text()), INFERENCE_SERVICES]
        documents += yaml.safe_load_all((ROOT / "deploy/operator/rbac.yaml").read_text())
        for document in documents:
            utils.create_from_dict(self.api, document)
        until(self._lists)

    def _lists(self) -> bool:
        try:
            self.objects.list_namespaced_custom_object(*GROUP, NAMESPACE, "trainingjobs")
        except ApiException:
            return False
        return True

    # Programs.

    def start(self, name: str) -> None:
        account = "ziya-operator" if name == "watcher" else "ziya-operator-worker"
        module = "services.operator.app" if name == "watcher" else "services.operator.worker"
        kubeconfig = self.cluster.kubeconfig_as(SYSTEM, account)
        mine = {**self.settings, "ZIYA_OPERATOR_KUBECONFIG": str(kubeconfig)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [*on_leash(signal.SIGKILL), sys.executable, "-m", module],
                cwd=ROOT,
                env={**os.environ, **mine},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """With all of its children, at once."""
        program = self.programs.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    # Objects.

    def submit(self, name: str, *stages: dict[str, Any], **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": "/".join(GROUP),
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": {"model": {"checkpoint": "initial"}, "output": {"pvc": CLAIM}, "stages": list(stages), **spec},
        }
        made: dict[str, Any] = self.objects.create_namespaced_custom_object(*GROUP, NAMESPACE, "trainingjobs", body)
        return made

    def job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects.get_namespaced_custom_object(*GROUP, NAMESPACE, "trainingjobs", name)
        return found

    def edit(self, name: str, **spec: Any) -> None:
        self.objects.patch_namespaced_custom_object(
            *GROUP, NAMESPACE, "trainingjobs", name, {"spec": spec}, _content_type=MERGE
        )

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(*GROUP, NAMESPACE, "trainingjobs", name)

    def inference(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.objects.get_namespaced_custom_object(
                *KSERVE, NAMESPACE, "inferenceservices", name
            )
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
            *KSERVE, NAMESPACE, "inferenceservices", name, {"status": status}, _content_type=MERGE
        )

    def status(self, name: str) -> dict[str, Any]:
        return self.job(name).get("status") or {}

    def stage(self, name: str, stage: str) -> dict[str, Any]:
        return next((one for one in self.status(name).get("stages", []) if one["name"] == stage), {})

    def reach(self, name: str, phase: str, seconds: float = 100) -> dict[str, Any]:
        """Waits for the job's phase; another end than that one fails at once."""

        def there() -> bool:
            now = self.status(name).get("phase")
            if now in ("Complete", "Failed") and now != phase:
                raise AssertionError(f"{name} is {now}:\n{self.story(name)}")
            return now == phase

        until(there, seconds, lambda: self.story(name))
        return self.job(name)

    def story(self, name: str) -> str:
        """Everything known, for a test that failed."""
        logs = "\n".join(f"== {program}\n{self.log(program)[-6000:]}" for program in ("watcher", "worker"))
        pods = client.CoreV1Api(self.api).list_namespaced_pod(NAMESPACE).items
        said = [f"{pod.metadata.name} {pod.status.phase}" for pod in pods]
        return f"{json.dumps(self.status(name), indent=1)}\n{said}\n{logs}"

    def events(self) -> list[str]:
        found = client.CoreV1Api(self.api).list_namespaced_event(NAMESPACE).items
        return [f"{event.reason}: {event.message}" for event in found if event.source.component == "ziya-operator"]

    def output(self, name: str) -> Path:
        """Where the results of a job lie on this machine."""
        uid = self.job(name)["metadata"]["uid"].replace("-", "")[:8]
        return self.cluster.claim_folder(NAMESPACE, CLAIM) / f"{name}-{uid}"


def until(
    reached: Callable[[], bool], seconds: float = 60, otherwise: Callable[[], str] = lambda: "not reached"
) -> None:
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise AssertionError(otherwise())
        time.sleep(0.05)
