"""The fields of a TrainingJob that only a cluster reads: what its pods need, and how a model is promoted to serving.

On one machine they are checked like all others, so that a mistake shows where it is cheapest, and then have no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from training.part import PATH, QUANTITY, URL, VARIABLE, Name, ObjectName, Part, Place

Percent = Annotated[int, Field(ge=1, le=100)]
Amount = int | Annotated[str, Field(max_length=32)]
Label = Annotated[str, Field(max_length=63)]


class SecretKey(Part):
    """A key of a Secret."""

    name: ObjectName
    key: Annotated[str, Field(min_length=1, max_length=253)]


class ValueFrom(Part):
    """Where a variable's value is kept."""

    secret_key_ref: SecretKey


class Variable(Part):
    """One variable of the trainer's environment."""

    name: Annotated[str, Field(pattern=VARIABLE, min_length=1, max_length=128)]
    value: Annotated[str, Field(max_length=4096)] | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Variable:
        if (self.value is None) == (self.value_from is None):
            raise ValueError(f"variable {self.name!r} must have either a value or a valueFrom")
        return self


class Claim(Part):
    """A PersistentVolumeClaim that the trainer sees at `path`."""

    claim: ObjectName
    path: Annotated[str, Field(pattern=PATH, min_length=2, max_length=512)]
    read_only: bool = True


class Toleration(Part):
    """A taint of nodes that does not matter; Kubernetes' own fields."""

    key: Annotated[str, Field(max_length=316)] | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Label | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None


def _names_differ(variables: Sequence[Variable]) -> Sequence[Variable]:
    names = [variable.name for variable in variables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands here twice")
    return variables


def _paths_differ(claims: Sequence[Claim]) -> Sequence[Claim]:
    paths = [claim.path for claim in claims]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"two claims have the path {twice[0]}")
    return claims


class Pod(Part):
    """What the pods of all stages have in common."""

    image: Place | None = None
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=16)] = ()
    node_selector: dict[str, Label] = Field(default_factory=dict, max_length=32)
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    env: Annotated[tuple[Variable, ...], Field(max_length=64), AfterValidator(_names_differ)] = ()
    claims: Annotated[tuple[Claim, ...], Field(max_length=16), AfterValidator(_paths_differ)] = ()
    shared_memory: Annotated[str, Field(pattern=QUANTITY, min_length=1, max_length=32)] | None = None


class Resources(Part):
    """Of each pod, as Kubernetes takes them."""

    requests: dict[str, Amount] = Field(default_factory=dict, max_length=16)
    limits: dict[str, Amount] = Field(default_factory=dict, max_length=16)


class CanaryGate(Part):
    """The first value of this instant query must be at least so much, before every rise."""

    prometheus: Annotated[str, Field(pattern=URL, min_length=1, max_length=1024)]
    query: Annotated[str, Field(min_length=1, max_length=4096)]
    at_least: float


def _rise(steps: tuple[int, ...]) -> tuple[int, ...]:
    if steps[-1] != 100 or any(before >= after for before, after in pairwise(steps)):
        raise ValueError("percentages must rise, and the last one must be 100")
    return steps


class Promotion(Part):
    """Which InferenceService takes the model, and how fast traffic moves to it."""

    inference_service: Name
    runtime: ObjectName | None = None
    steps: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=16), AfterValidator(_rise)] = (10, 50, 100)
    step_seconds: Annotated[float, Field(ge=0, le=604800)] = 300.0
    ready_seconds: Annotated[float, Field(ge=1, le=604800)] = 600.0
    gate: CanaryGate | None = None
