"""What a plan asks for, as values. Each can be carried out twice with the same result (services/operator/apply.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AddFinalizer:
    """Our finalizer onto the TrainingJob, before it has any child."""


@dataclass(frozen=True)
class RemoveFinalizer:
    """Lets the TrainingJob go."""


@dataclass(frozen=True)
class DeleteTrainingJob:
    """Its time to live is over."""


@dataclass(frozen=True)
class CreateAttempt:
    """The Job of an attempt that the status names, suspended (and the Service, where there are several nodes)."""

    stage: str
    attempt: int


@dataclass(frozen=True)
class Activate:
    """Lets the Job of that uid run, or hands it to its queue: only now that the status knows it."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteJob:
    """Stops its pods with their grace period; only the Job of that uid."""

    name: str
    uid: str


@dataclass(frozen=True)
class ForceDeletePod:
    """For a pod whose node is gone. The checkpoint fence makes it safe: what still runs there cannot publish."""

    name: str
    uid: str


@dataclass(frozen=True)
class BuildShard:
    """A piece of a data stage, onto the data queue."""

    stage: str
    attempt: int
    number: int


@dataclass(frozen=True)
class SetTraffic:
    """The InferenceService serves `uri` with `percent` of its traffic; 100 with all of it."""

    uri: str
    percent: int


@dataclass(frozen=True)
class Emit:
    """An Event on the TrainingJob; the same reason, stage and attempt count up in one Event."""

    reason: str
    message: str
    warning: bool = False
    stage: str = ""
    attempt: int = 0


Action = (
    AddFinalizer
    | RemoveFinalizer
    | DeleteTrainingJob
    | CreateAttempt
    | Activate
    | DeleteJob
    | ForceDeletePod
    | BuildShard
    | SetTraffic
    | Emit
)
