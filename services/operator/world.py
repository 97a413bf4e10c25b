"""Everything a plan may look at, gathered before it: no plan asks the world anything itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.operator.children import JobView, PodView
from services.operator.resource import TrainingJob


@dataclass(frozen=True)
class Serving:
    """The InferenceService of a promotion: what it is told to do, and whether its newest revision is ready."""

    uri: str | None
    percent: int | None
    ready: bool
    message: str = ""


@dataclass(frozen=True)
class World:
    """`serving` is None where there is no InferenceService (yet), `measured` where no gate's query was answered.

    A pod that has not ended `lost_after` its grace period is on a node that is gone. `versions` tells whether anything
    that was looked at has changed since (services/operator/resting.py)."""

    job: TrainingJob
    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    serving: Serving | None = None
    measured: float | None = None
    lost_after: timedelta = timedelta(minutes=10)
    versions: str = ""

    def job_named(self, name: str | None) -> JobView | None:
        return next((job for job in self.jobs if job.name == name), None)

    def pods_of(self, stage: str, attempt: int) -> list[PodView]:
        return [pod for pod in self.pods if (pod.stage, pod.attempt) == (stage, attempt)]
