"""Carries out a plan: the status first, under the version it was made from, then the actions.

A worker may die after any request here. What the status says is then found undone by the next one, which does it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from services.operator.actions import (
    Action,
    Activate,
    AddFinalizer,
    BuildShard,
    CreateAttempt,
    DeleteJob,
    DeleteTrainingJob,
    Emit,
    ForceDeletePod,
    RemoveFinalizer,
    SetTraffic,
)
from services.operator.cluster import Cluster, Conflict, Refused
from services.operator.conditions import with_condition
from services.operator.draft import Plan
from services.operator.inference import carry_traffic
from services.operator.manifests import Surroundings, activation, job_manifest, service_manifest
from services.operator.resource import FINALIZER, GROUP, KIND, VERSION, TrainingJob
from services.operator.status import Status, removed, stamp
from services.operator.world import World

Publish = Callable[[TrainingJob, BuildShard], None]
COMPONENT = "ziya-operator"
CONFLICTS = 5


class Hands:
    """Does what plans ask for. `publish` puts a piece of a data stage onto its queue."""

    def __init__(self, cluster: Cluster, where: Surroundings, publish: Publish) -> None:
        self._cluster, self._where, self._publish = cluster, where, publish

    def apply(self, world: World, plan: Plan) -> None:
        """Raises Conflict before anything was done, or ApiError in the midst of it."""
        job = world.job
        version = self._write(job, job.version, job.status, plan.status)
        for action in plan.actions:
            try:
                self._do(job, action)
            except Refused as error:
                self._tell_refusal(job, version, plan.status, action, str(error))
                return

    def _write(self, job: TrainingJob, version: str, before: Status, after: Status) -> str:
        old, new = before.to_json(), after.to_json()
        if old == new:
            return version
        return self._cluster.patch_status(job.namespace, job.name, version, removed(old, new))

    def _do(self, job: TrainingJob, action: Action) -> None:
        cluster, namespace = self._cluster, job.namespace
        match action:
            case AddFinalizer():
                self._set_finalizers(job, {*job.finalizers, FINALIZER})
            case RemoveFinalizer():
                self._set_finalizers(job, {*job.finalizers} - {FINALIZER})
            case DeleteTrainingJob():
                cluster.delete_training_job(namespace, job.name, job.uid)
            case CreateAttempt():
                self._create(job, action)
            case Activate():
                cluster.patch_job(namespace, action.name, activation(action.uid, job.spec.queue_name))
            case DeleteJob():
                cluster.delete_job(namespace, action.name, action.uid)
            case ForceDeletePod():
                cluster.force_delete_pod(namespace, action.name, action.uid)
            case BuildShard():
                self._publish(job, action)
            case SetTraffic():
                carry_traffic(cluster, job, action)
            case Emit():
                cluster.put_event(namespace, event_manifest(job, action, datetime.now(UTC)))

    def _set_finalizers(self, job: TrainingJob, wanted: set[str]) -> None:
        # Somebody else's finalizer, set since we read, would be lost: read again, and then under that version.
        for _ in range(CONFLICTS):
            raw = self._cluster.training_job(job.namespace, job.name)
            if raw is None or raw["metadata"]["uid"] != job.uid:
                return
            others = {*raw["metadata"].get("finalizers", ())} - {FINALIZER}
            finalizers = sorted(others | (wanted & {FINALIZER}))
            version = raw["metadata"]["resourceVersion"]
            with contextlib.suppress(Conflict):
                self._cluster.set_finalizers(job.namespace, job.name, finalizers, version)
                return

    def _create(self, job: TrainingJob, action: CreateAttempt) -> None:
        stage = job.stage(action.stage)
        if stage is None:
            return
        if stage.parallelism.nodes > 1:
            self._cluster.create_service(job.namespace, service_manifest(job))
        self._cluster.create_job(job.namespace, job_manifest(job, stage, action.attempt, self._where))

    def _tell_refusal(self, job: TrainingJob, version: str, status: Status, action: Action, message: str) -> None:
        """A quota, a policy or a right that is missing: the status says so, and the next look tries again."""
        now = datetime.now(UTC)
        reason = f"{type(action).__name__}Refused"
        told = with_condition(status, "Progressing", False, reason, message, generation=job.generation, now=now)
        self._write(job, version, status, told)
        self._cluster.put_event(job.namespace, event_manifest(job, Emit(reason, message, warning=True), now))


def event_manifest(job: TrainingJob, event: Emit, now: datetime) -> dict[str, Any]:
    """Its name follows from what it tells, so that a repeat counts up instead of adding one more."""
    key = json.dumps([job.uid, event.reason, event.stage, event.attempt])
    digits = hashlib.sha256(key.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name[:200]}.{digits}", "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message[:1024],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
        "firstTimestamp": stamp(now),
        "lastTimestamp": stamp(now),
        "count": 1,
    }
