"""The world around one TrainingJob, read fresh from the API: never from a cache, which might be behind a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from services.operator.api import Object
from services.operator.children import JobView, PodView, read_job, read_pod
from services.operator.cluster import Cluster
from services.operator.prometheus import measure
from services.operator.resource import Key, Stage, TrainingJob, read
from services.operator.resting import versions
from services.operator.world import Serving, World


def gather(cluster: Cluster, key: Key, lost_after: timedelta = timedelta(minutes=10)) -> World | None:
    """None where the job is gone, or another one has its name. Raises ApiError."""
    raw = _fetch(cluster, key)
    if raw is None:
        return None
    job, children = read(raw), cluster.jobs_of(key.namespace, key.uid)
    jobs = tuple(read_job(one) for one in children)
    # A Job may be gone before its pods are.
    may_have_pods = bool(jobs) or any(stage.job_name for stage in job.status.stages)
    found = cluster.pods_of(key.namespace, key.uid) if may_have_pods else []
    pods = tuple(_with_logs(cluster, job, jobs, [read_pod(one) for one in found]))
    world = World(job, jobs, pods, lost_after=lost_after, versions=versions(raw, [*children, *found]))
    return _with_serving(cluster, world)


def fetch(cluster: Cluster, key: Key) -> TrainingJob | None:
    """The object alone."""
    raw = _fetch(cluster, key)
    return read(raw) if raw is not None else None


def _fetch(cluster: Cluster, key: Key) -> Object | None:
    raw = cluster.training_job(key.namespace, key.name)
    return raw if raw is not None and raw["metadata"]["uid"] == key.uid else None


def _with_logs(cluster: Cluster, job: TrainingJob, jobs: Sequence[JobView], pods: Sequence[PodView]) -> list[PodView]:
    """The last lines of the pods of an attempt that has just failed: soon they are gone with their pods."""
    known = {(stage.name, stage.attempt) for stage in job.status.stages if stage.failure is not None}
    failed = {(one.stage, one.attempt) for one in jobs if one.has("Failed", "FailureTarget")} - known
    return [
        replace(pod, log_tail=cluster.log_tail(job.namespace, pod.name))
        if (pod.stage, pod.attempt) in failed and pod.exit_code not in (None, 0)
        else pod
        for pod in pods
    ]


def _with_serving(cluster: Cluster, world: World) -> World:
    """The InferenceService, where a promotion is at work or about to be."""
    job, stage = world.job, _next_promotion(world.job)
    if stage is None or job.spec.promotion is None or job.is_over:
        return world
    raw = cluster.inference_service(job.namespace, job.spec.promotion.inference_service)
    gate = job.spec.promotion.gate
    begun = job.status.stage(stage.name)
    asked = gate is not None and begun is not None and begun.canary is not None
    measured = measure(gate) if asked and gate is not None else None
    return replace(world, serving=read_serving(raw) if raw is not None else None, measured=measured)


def _next_promotion(job: TrainingJob) -> Stage | None:
    """One that is at work, or that this very look may begin: the stage before it may end, and a merge takes no time."""
    left = [stage for stage in job.spec.stages if not _is_done(job, stage.name)]
    after = [stage for stage in left[1:] if stage.type != "merge"]
    return next((stage for stage in (*left[:1], *after[:1]) if stage.type == "promote"), None)


def _is_done(job: TrainingJob, stage: str) -> bool:
    found = job.status.stage(stage)
    return found is not None and found.phase == "Succeeded"


def read_serving(raw: Mapping[str, Any]) -> Serving:
    """From an InferenceService: ready when KServe says so of the newest revision of this very generation."""
    predictor = raw.get("spec", {}).get("predictor", {})
    status = raw.get("status") or {}
    ready: Mapping[str, Any] = next((one for one in status.get("conditions") or [] if one["type"] == "Ready"), {})
    component = status.get("components", {}).get("predictor", {})
    created, latest = component.get("latestCreatedRevision"), component.get("latestReadyRevision")
    seen = status.get("observedGeneration", 0) >= raw["metadata"].get("generation", 0)
    percent = predictor.get("canaryTrafficPercent")
    return Serving(
        uri=predictor.get("model", {}).get("storageUri"),
        percent=100 if percent is None else percent,
        ready=seen and ready.get("status") == "True" and created == latest,
        message=ready.get("message") or ready.get("reason") or "KServe has said nothing yet",
    )
