"""A TrainingJob file: the same YAML runs on this machine and, applied to a cluster, there.

Names are Kubernetes' (camelCase); every unknown one is refused with its path. What a stage sets of its recipe is
under `train`, field by field (training/override.py), so that a stage and its recipe map onto each other one to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from training.errors import BadConfig
from training.recipe import LANGUAGES, TASKS

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
StageType = Literal["data", "vision", "pretrain", "align", "instruct", "chat", "eval", "merge", "promote"]
TRAINS = frozenset({"vision", "pretrain", "align", "instruct", "chat"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Backoff(_Part):
    """Seconds between tries: `initial`, doubled each time, up to `max`."""

    initial: float = Field(default=10.0, ge=0)
    max: float = Field(default=600.0, ge=0)


class Retry(_Part):
    """How often a stage is tried again after failing; disruptions (evictions) have a budget of their own."""

    limit: int = Field(default=3, ge=0)
    disruption_limit: int = Field(default=20, ge=0)
    backoff: Backoff = Backoff()


class Parallelism(_Part):
    """Processes: `nodes` × `procs_per_node`. Without `strategy` the recipe's stands."""

    nodes: int = Field(default=1, ge=1)
    procs_per_node: int = Field(default=1, ge=1)
    strategy: Literal["ddp", "fsdp"] | None = None


class Checkpointing(_Part):
    """When training checkpoints are made and how many are kept; what is not set is the recipe's."""

    every_steps: int | None = Field(default=None, ge=1)
    every_seconds: float | None = Field(default=None, gt=0)
    keep: int | None = Field(default=None, ge=1)
    grace_seconds: int = Field(default=30, ge=1)


class Gate(_Part):
    """The stage fails unless this metric of its evaluation is at least so much."""

    metric: str
    at_least: float


class DataSource(_Part):
    """One source of a stage's data: training.recipe.Source."""

    data: str
    task: str = "caption"
    language: str = "en"
    ratio: float = Field(default=1.0, gt=0)
    field: str | None = None
    templates: str | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.task not in TASKS:
            raise ValueError(f"there is no task {self.task!r}; tasks are {', '.join(TASKS)}")
        if self.language not in LANGUAGES:
            raise ValueError(f"there is no language {self.language!r}; languages are {', '.join(LANGUAGES)}")
        return self


class Stage(_Part):
    """One stage. `recipe` names a function of training/stages.py (default: the type's own)."""

    name: Name
    type: StageType
    recipe: str | None = None
    needs: tuple[Name, ...] = ()
    data: tuple[DataSource, ...] = ()
    train: dict[str, Any] = {}
    parallelism: Parallelism = Parallelism()
    resources: dict[str, Any] = {}
    retry: Retry = Retry()
    checkpoint: Checkpointing = Checkpointing()
    gate: Gate | None = None
    builder: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type == "data" and not self.builder:
            raise ValueError("a stage of type data needs a builder: a Python module with a function build(folder, …)")
        if self.type in TRAINS and not self.data:
            raise ValueError(f"a stage of type {self.type} needs data: a list of sources")
        if self.type not in TRAINS and (self.train.keys() - {"checks"} or self.recipe):
            raise ValueError(f"a stage of type {self.type} does not train: only train.checks can be set")
        return self


class Model(_Part):
    """The checkpoint the first stage starts from, a folder relative to the output folder or absolute."""

    checkpoint: str


class Output(_Part):
    """Where results go: a folder, or on a cluster a claim."""

    path: str | None = None
    pvc: str | None = None


class Spec(_Part):
    """What the job does, in order."""

    model: Model
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=32)
    output: Output = Output()
    queue_name: str | None = None
    priority_class_name: str | None = None
    suspend: bool = False
    active_deadline_seconds: int | None = Field(default=None, ge=1)
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    promotion: dict[str, Any] = {}

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        before: set[str] = set()
        for stage in self.stages:
            if stage.name in before:
                raise ValueError(f"two stages are called {stage.name!r}")
            if missing := set(stage.needs) - before:
                raise ValueError(f"stage {stage.name!r} needs {sorted(missing)[0]!r}, which is no stage before it")
            before.add(stage.name)
        return self


class Metadata(_Part):
    """Kubernetes' own; only the name matters here."""

    name: Name
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TrainingJob(_Part):
    """The whole file."""

    api_version: Literal["ziya.dev/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: Metadata
    spec: Spec

    def stage(self, name: str) -> Stage:
        """Raises BadConfig when there is none of that name."""
        for stage in self.spec.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.spec.stages)
        raise BadConfig(f"job {self.metadata.name} has no stage {name!r}; its stages are {names}")


def load(path: Path) -> TrainingJob:
    """Raises BadConfig with a line for everything that is wrong, each with its place in the file."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise BadConfig(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, Mapping):
        raise BadConfig(f"{path} is not a TrainingJob: it holds no mapping")
    try:
        return TrainingJob.model_validate(raw)
    except ValidationError as error:
        raise BadConfig("\n".join(f"{path}: {line}" for line in _complaints(error))) from error


def _complaints(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        if detail["type"] == "extra_forbidden":
            yield f"{place}: there is no such field{_did_you_mean(detail['loc'])}"
        elif detail["type"] == "missing":
            yield f"{place}: is missing"
        else:
            message = detail["msg"].removeprefix("Value error, ")
            given = f", not {detail['input']!r}" if isinstance(detail["input"], str | int | float) else ""
            yield f"{place}: {message[0].lower()}{message[1:]}{given}"


def _did_you_mean(place: tuple[int | str, ...]) -> str:
    """The nearest name among all fields of the file's classes."""
    known = {to_camel(name) for kind in _Part.__subclasses__() for name in kind.model_fields}
    close = get_close_matches(str(place[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
