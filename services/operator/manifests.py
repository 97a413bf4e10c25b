"""The Job of an attempt, and the Service of a job, as plain data: what the status says, put into Kubernetes' words.

One pod a node, all started together and all replaced together: a gang. Kubernetes does not retry anything by itself
(`backoffLimit: 0`), since the next attempt is the plan's decision and needs a new number. The failure policy makes the
Job fail at once where the rest of the gang could only wait: an eviction, a wrong job (42), a stop after saving (75).
The trainer gets the whole TrainingJob as a file, from an annotation, as it was when the attempt began.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.operator.children import ATTEMPT, CONTAINER, JOB, JOB_UID, QUEUE, STAGE
from services.operator.naming import attempt_name, output_folder, service_name
from services.operator.resource import GROUP, KIND, VERSION, Stage, TrainingJob
from services.operator.verdict import EXIT_BAD_CONFIG, EXIT_STOPPED

JOB_FILE, OUTPUT, TOKEN_FOLDER = "/etc/ziya/job.yaml", "/output", "/var/run/secrets/ziya"
ANNOTATION, SPEC_HASH = "ziya.dev/training-job", "ziya.dev/spec-hash"
TERMINATION_LOG = "/dev/termination-log"
# Beyond what the trainer needs to save: for the processes to end after it.
EXTRA_GRACE_SECONDS = 15
NODE_SILENT_SECONDS = 60
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclass(frozen=True)
class Surroundings:
    """What the operator's settings say of all pods."""

    image: str
    account: str
    rendezvous_port: int
    progress_url: str = ""
    progress_audience: str = ""


def job_manifest(job: TrainingJob, stage: Stage, attempt: int, where: Surroundings) -> dict[str, Any]:
    """Suspended; `activation` lets it run."""
    name, nodes = attempt_name(job.name, stage.name, job.uid, attempt), stage.parallelism.nodes
    labels = child_labels(job) | {STAGE: stage.name, ATTEMPT: str(attempt)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": labels,
            "annotations": {SPEC_HASH: stage.spec_hash},
            "ownerReferences": [owner(job)],
        },
        "spec": {
            "suspend": True,
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": {"labels": labels, "annotations": {ANNOTATION: file_of(job)}},
                "spec": _pod(job, stage, attempt, where),
            },
        },
    }


def activation(uid: str, queue: str | None) -> dict[str, Any]:
    """The merge patch that lets a Job run, or gives it to its queue, which then does; only the Job of that uid."""
    if queue:
        return {"metadata": {"uid": uid, "labels": {QUEUE: queue}}}
    return {"metadata": {"uid": uid}, "spec": {"suspend": False}}


def service_manifest(job: TrainingJob) -> dict[str, Any]:
    """Headless: gives each pod of the job a name, before it is ready, for the processes to find one another."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job.name, job.uid),
            "namespace": job.namespace,
            "labels": child_labels(job),
            "ownerReferences": [owner(job)],
        },
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {JOB_UID: job.uid}},
    }


def child_labels(job: TrainingJob) -> dict[str, str]:
    """Of everything that belongs to the job; a label's value may have 63 characters."""
    return {JOB: job.name[:63].rstrip("-."), JOB_UID: job.uid}


def owner(job: TrainingJob) -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _failure_rules() -> list[dict[str, Any]]:
    disruption = [{"type": "DisruptionTarget", "status": "True"}]
    codes = {"containerName": CONTAINER, "operator": "In", "values": [EXIT_BAD_CONFIG, EXIT_STOPPED]}
    return [{"action": "FailJob", "onPodConditions": disruption}, {"action": "FailJob", "onExitCodes": codes}]


def file_of(job: TrainingJob) -> str:
    """As JSON, which is YAML; the trainer reads no status."""
    meta = {"name": job.name, "namespace": job.namespace}
    whole = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": meta, "spec": job.raw_spec}
    return json.dumps(whole, ensure_ascii=False)


def _pod(job: TrainingJob, stage: Stage, attempt: int, where: Surroundings) -> dict[str, Any]:
    volumes, mounts = _volumes(job, where)
    pod = job.spec.pod
    grace = stage.checkpoint.grace_seconds
    place = [JOB_FILE, "--stage", stage.name, "--output", f"{OUTPUT}/{output_folder(job.name, job.uid)}"]
    often = ["--attempt", str(attempt), "--grace-seconds", str(grace)]
    container = {
        "name": CONTAINER,
        "image": pod.image or where.image,
        "command": ["python", "-m", "training.launch", *place, *often],
        "env": [*_environment(job, stage, attempt, where), *pod.env],
        "resources": stage.resources,
        "volumeMounts": mounts,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    optional: Mapping[str, Any] = {
        "priorityClassName": job.spec.priority_class_name,
        "nodeSelector": pod.node_selector,
        "tolerations": [*pod.tolerations, *_node_tolerations(pod.tolerations)],
        "imagePullSecrets": [{"name": name} for name in pod.image_pull_secrets],
        "subdomain": service_name(job.name, job.uid) if stage.parallelism.nodes > 1 else None,
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": where.account,
        "automountServiceAccountToken": False,
        # Else a Service called ziya-… gives every pod variables ZIYA_…, which programs take for settings.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace + EXTRA_GRACE_SECONDS,
        "containers": [container],
        "volumes": volumes,
        **{key: value for key, value in optional.items() if value},
    }


def _node_tolerations(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A minute on a node that does not answer: Kubernetes would add five. What the job says itself, stays."""
    named = {one.get("key") for one in given}
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_SILENT_SECONDS}
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        if key not in named and None not in named
    ]


def _environment(job: TrainingJob, stage: Stage, attempt: int, where: Surroundings) -> list[dict[str, Any]]:
    """torchrun's own names (PET_*), and Kubeflow's for the progress endpoint."""
    many = stage.parallelism.nodes > 1
    first = f"{attempt_name(job.name, stage.name, job.uid, attempt)}-0.{service_name(job.name, job.uid)}"
    values = {
        "PET_NNODES": str(stage.parallelism.nodes),
        "PET_NPROC_PER_NODE": str(stage.parallelism.procs_per_node),
        "PET_MASTER_ADDR": first if many else "127.0.0.1",
        "PET_MASTER_PORT": str(where.rendezvous_port),
        "ZIYA_TERMINATION_LOG": TERMINATION_LOG,
    }
    if where.progress_url:
        path = f"/v1/progress/{job.namespace}/{job.name}/{job.uid}/{stage.name}/{attempt}"
        values["KUBEFLOW_TRAINER_SERVER_URL"] = where.progress_url.rstrip("/") + path
        values["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{TOKEN_FOLDER}/token"
    rank = {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}}
    return [*({"name": name, "value": value} for name, value in values.items()), rank]


def _volumes(job: TrainingJob, where: Surroundings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes, and where they are mounted."""
    folder, file = JOB_FILE.rsplit("/", 1)
    item = {"path": file, "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}']"}}
    volumes: list[dict[str, Any]] = [
        {"name": "job", "downwardAPI": {"items": [item]}},
        {"name": "output", "persistentVolumeClaim": {"claimName": job.spec.output.pvc}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "job", "mountPath": folder, "readOnly": True},
        {"name": "output", "mountPath": OUTPUT},
    ]
    if where.progress_url:
        token = {"path": "token", "audience": where.progress_audience, "expirationSeconds": 3600}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    if job.spec.pod.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": job.spec.pod.shared_memory}
        volumes.append({"name": "memory", "emptyDir": memory})
        mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    for number, claim in enumerate(job.spec.pod.claims):
        source = {"claimName": claim.claim, "readOnly": claim.read_only}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
        mounts.append({"name": f"claim-{number}", "mountPath": claim.path, "readOnly": claim.read_only})
    return volumes, mounts
