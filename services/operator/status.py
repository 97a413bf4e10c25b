"""The status of a TrainingJob: all that the operator remembers, and what people see of it.

Values are frozen; the plan makes new ones. What is not set is not written, so that a status reads like its story.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer
from pydantic.alias_generators import to_camel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)

    @field_serializer("*", when_used="json", check_fields=False)
    def _plain(self, value: Any) -> Any:
        return stamp(value) if isinstance(value, datetime) else value


class Condition(_Part):
    """metav1.Condition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


class Artifact(_Part):
    """The model that a stage left. Without a digest its last words were lost; the trainer checks it when loading."""

    uri: str
    digest: str | None = None
    step: int | None = None


class Checkpoint(_Part):
    step: int
    time: datetime | None = None


class Progress(_Part):
    """What the trainer last told of `attempt`."""

    attempt: int = 0
    step: int = 0
    total: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    samples_per_second: float | None = None
    mfu: float | None = None
    eta_seconds: float | None = None
    updated_at: datetime | None = None


class Failure(_Part):
    """Why `attempt` ended: Crashed, Rejected (exit 42) or Disrupted, and everything known of it."""

    attempt: int
    reason: str
    exit_code: int | None = None
    pod: str | None = None
    node: str | None = None
    message: str = ""
    log_tail: str = ""
    step: int | None = None
    time: datetime | None = None


class Shard(_Part):
    """A finished piece of a data stage."""

    number: int
    digest: str


class Canary(_Part):
    """`percent` of the traffic is to go to `uri`, ready `since`; `previous_uri` had it before."""

    percent: int
    uri: str
    since: datetime | None = None
    previous_uri: str | None = None


class StageStatus(_Part):
    """One stage. Its `attempt` is 0 before the first; `job_uid` is known once the attempt's Job was seen."""

    name: str
    type: str = ""
    phase: str = "Pending"
    spec_hash: str | None = None
    attempt: int = 0
    restarts: int = 0
    disruptions: int = 0
    next_attempt_time: datetime | None = None
    job_name: str | None = None
    job_uid: str | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    artifact: Artifact | None = None
    metrics: dict[str, float] | None = None
    checkpoint: Checkpoint | None = None
    progress: Progress | None = None
    last_failure: Failure | None = None
    shards: tuple[Shard, ...] | None = None
    canary: Canary | None = None

    @property
    def failure(self) -> Failure | None:
        """Of the current attempt."""
        return self.last_failure if self.last_failure and self.last_failure.attempt == self.attempt else None

    def to(self, **changes: Any) -> StageStatus:
        return self.model_copy(update=changes)


class Display(_Part):
    """What kubectl's columns show."""

    step: str = ""
    loss: str = ""
    eta: str = ""
    attempt: str = ""


class Status(_Part):
    observed_generation: int | None = None
    phase: str | None = None
    current_stage: str | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    display: Display | None = None
    stages: tuple[StageStatus, ...] = ()

    def stage(self, name: str) -> StageStatus | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def condition(self, kind: str) -> Condition | None:
        return next((one for one in self.conditions if one.type == kind), None)

    def to(self, **changes: Any) -> Status:
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """As the API takes it, without what is not set."""
        said: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return said


def stamp(time: datetime) -> str:
    """As Kubernetes writes times: UTC, whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def removed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """`after` as a merge patch over `before`: what is no longer there becomes null. Lists are replaced whole."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        patch[key] = removed(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return patch
