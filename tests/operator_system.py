"""The operator on the tests' own API server (tests/kube), whose kubelet runs training pods as local processes.

Each program has an account of its own with the rights of deploy/operator/rbac.yaml, and no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kubernetes import utils
from kubernetes.client.exceptions import ApiException

from tests.kube.cluster import Cluster
from tests.operator_objects import GROUP, INFERENCE_SERVICES, PLURAL, OperatorObjects
from tests.operator_objects import NAMESPACE as NAMESPACE
from tests.operator_objects import until as until
from tests.operator_programs import ROOT, WATCHER, WORKER, free_port

SYSTEM = "ziya-system"


class OperatorSystem(OperatorObjects):
    """`with` starts everything."""

    def __init__(self, folder: Path, **settings: str) -> None:
        more = {
            "ZIYA_OPERATOR_RENDEZVOUS_PORT": str(free_port()),
            "ZIYA_OPERATOR_CLAIMS_FOLDER": str(folder / "kube" / "claims"),
        }
        super().__init__(folder, {**more, **settings})
        (folder / "kube").mkdir()
        self.cluster = Cluster(folder / "kube", variables={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})

    def __enter__(self) -> OperatorSystem:
        self.redis.start()
        self.cluster.start()
        self.api = self.cluster.client()
        self._install()
        self.start(WATCHER)
        self.start(WORKER)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.cluster.stop()

    def _install(self) -> None:
        """The CRDs, the accounts and their rights, as an administrator does."""
        namespace: Any = {"metadata": {"name": SYSTEM}}
        self.core.create_namespace(namespace)
        claim: Any = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        body: Any = {"metadata": {"name": self.claim}, "spec": claim}
        self.core.create_namespaced_persistent_volume_claim(self.namespace, body)
        documents = [yaml.safe_load((ROOT / "deploy/operator/crd.yaml").read_text()), INFERENCE_SERVICES]
        documents += yaml.safe_load_all((ROOT / "deploy/operator/rbac.yaml").read_text())
        for document in documents:
            utils.create_from_dict(self.api, document)  # type: ignore[no-untyped-call]
        self.until(self._lists)

    def _lists(self) -> bool:
        try:
            self.objects.list_namespaced_custom_object(*GROUP, self.namespace, PLURAL)
        except ApiException:
            return False
        return True

    def kubeconfig(self, account: str) -> Path:
        return self.cluster.kubeconfig_as(SYSTEM, account)

    def output(self, name: str) -> Path:
        """Where the results of a job lie on this machine."""
        uid = self.job(name)["metadata"]["uid"].replace("-", "")[:8]
        return self.cluster.claim_folder(self.namespace, self.claim) / f"{name}-{uid}"
