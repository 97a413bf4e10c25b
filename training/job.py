"""A TrainingJob file: the same YAML runs on this machine and, applied to a cluster, there.

Names are Kubernetes' (camelCase); every unknown one is refused with its path. What a stage sets of its recipe is
under `train`, field by field (training/override.py), so that a stage and its recipe map onto each other one to one.
Fields, defaults and bounds are those of deploy/operator/crd.yaml. An object as the Kubernetes API gives it is read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from training.cluster_spec import Pod, Promotion, Resources
from training.complaints import complaints, did_you_mean, one_of
from training.errors import BadConfig
from training.override import applied
from training.part import Name, ObjectName, Part, Place, Word
from training.recipe import LANGUAGES, TASKS, Recipe
from training.stages import STAGES
from training.strict_yaml import StrictLoader

StageType = Literal["data", "vision", "pretrain", "align", "instruct", "chat", "eval", "merge", "promote"]
TRAINS = frozenset(STAGES)
Seconds = Annotated[float, Field(ge=0, le=86400)]
TEN_YEARS = 315_360_000


class Backoff(Part):
    """Seconds between tries: `initial`, doubled each time, up to `max`."""

    initial: Seconds = 10.0
    max: Seconds = 600.0


class Retry(Part):
    """How often a stage is tried again after failing; disruptions (evictions) have a budget of their own."""

    limit: int = Field(default=3, ge=0, le=100)
    disruption_limit: int = Field(default=20, ge=0, le=10_000)
    backoff: Backoff = Backoff()


class Parallelism(Part):
    """Processes: `nodes` × `procs_per_node`. Without `strategy` the recipe's stands."""

    nodes: int = Field(default=1, ge=1, le=512)
    procs_per_node: int = Field(default=1, ge=1, le=64)
    strategy: Literal["ddp", "fsdp"] | None = None


class Checkpointing(Part):
    """When training checkpoints are made and how many are kept; what is not set is the recipe's."""

    every_steps: int | None = Field(default=None, ge=1)
    every_seconds: float | None = Field(default=None, gt=0, le=604_800)
    keep: int | None = Field(default=None, ge=1, le=1000)
    grace_seconds: int = Field(default=30, ge=1, le=86400)


class Gate(Part):
    """The stage fails unless this metric of its evaluation is at least so much."""

    metric: str = Field(min_length=1, max_length=128)
    at_least: float


class DataSource(Part):
    """One source of a stage's data: training.recipe.Source."""

    data: str = Field(min_length=1, max_length=2048)
    task: Annotated[str, AfterValidator(one_of("task", TASKS))] = "caption"
    language: Annotated[str, AfterValidator(one_of("language", LANGUAGES))] = "en"
    ratio: float = Field(default=1.0, gt=0, le=1e9, allow_inf_nan=False)
    field: Word | None = None
    templates: Word | None = None
    samples_each: int = Field(default=1, ge=1, le=1000)


class Stage(Part):
    """One stage. `recipe` names a function of training/stages.py (default: the type's own)."""

    name: Name
    type: StageType
    recipe: Word | None = None
    needs: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    data: Annotated[tuple[DataSource, ...], Field(max_length=64)] = ()
    train: dict[str, Any] = Field(default_factory=dict, max_length=64)
    parallelism: Parallelism = Parallelism()
    resources: Resources = Resources()
    retry: Retry = Retry()
    checkpoint: Checkpointing = Checkpointing()
    gate: Gate | None = None
    builder: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    options: dict[str, Any] = Field(default_factory=dict, max_length=64)
    shards: int = Field(default=1, ge=1, le=1024)


class Model(Part):
    """The checkpoint the first stage starts from, a folder relative to the output folder or absolute."""

    checkpoint: Place


class Output(Part):
    """Where results go: on this machine a folder, on a cluster a claim."""

    path: Place | None = None
    pvc: ObjectName | None = None


class Spec(Part):
    """What the job does, in order."""

    model: Model
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=32)
    output: Output = Output()
    pod: Pod = Pod()
    queue_name: Annotated[ObjectName, Field(max_length=63)] | None = None
    priority_class_name: ObjectName | None = None
    suspend: bool = False
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=TEN_YEARS)
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=TEN_YEARS)
    promotion: Promotion | None = None


class Metadata(Part):
    """Kubernetes' own; only the name matters here, and what the API server adds is let pass."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class TrainingJob(Part):
    """The whole file."""

    api_version: Literal["ziya.dev/v1alpha1"]
    kind: Literal["TrainingJob"]
    metadata: Metadata
    spec: Spec
    # The operator's; written back it would be refused or ignored.
    status: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)

    def stage(self, name: str) -> Stage:
        """Raises BadConfig when there is none of that name."""
        for stage in self.spec.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.spec.stages)
        raise BadConfig(f"job {self.metadata.name} has no stage {name!r}; its stages are {names}")

    def to_yaml(self) -> str:
        """The file again, without what has its default value."""
        said = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return yaml.safe_dump(said, allow_unicode=True, sort_keys=False, width=120)


def load(path: Path) -> TrainingJob:
    """Raises BadConfig with a line for everything that is wrong, each with its place in the file."""
    try:
        raw = yaml.load(path.read_text("utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadConfig(f"{path} is not YAML: {error}") from error
    return parse(raw, str(path))


def parse(raw: Any, where: str) -> TrainingJob:
    """A job from plain data, as a file or the Kubernetes API gives it. Raises BadConfig as `load` does."""
    if not isinstance(raw, Mapping):
        raise BadConfig(f"{where} is not a TrainingJob: it holds no mapping")
    try:
        # As JSON, for that is how a cluster gets it: there 1 is no boolean and "1" no number.
        job = TrainingJob.model_validate_json(json.dumps(raw, default=str), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise BadConfig("\n".join(f"{where}: {line}" for line in complaints(error, TrainingJob))) from error
    if wrong := [*_wrong(job.spec.stages), *_unpromoted(job.spec)]:
        raise BadConfig("\n".join(f"{where}: {line}" for line in wrong))
    return job


def _wrong(stages: Sequence[Stage]) -> Iterator[str]:
    """What fields alone do not show: stages among one another, and each against its type and its recipe."""
    before: list[str] = []
    for number, stage in enumerate(stages):
        path = f"spec.stages[{number}]"
        if stage.name in before:
            yield f"{path}.name: two stages are called {stage.name!r}"
        for place, name in enumerate(stage.needs):
            if name not in before:
                meant = did_you_mean(name, before)
                yield f"{path}.needs[{place}]: {stage.name!r} needs {name!r}, which is no stage before it{meant}"
        before.append(stage.name)
        yield from _unfit(stage, path)
        wrong: list[str] = []
        recipe = applied(stage, path, wrong)
        yield from wrong
        yield from _gate(stage, recipe, path)


def _unpromoted(spec: Spec) -> Iterator[str]:
    names = [stage.name for stage in spec.stages if stage.type == "promote"]
    if names and spec.promotion is None:
        yield f"spec.promotion: is missing: the stage {names[0]!r} of type promote needs an InferenceService's name"


def _unfit(stage: Stage, path: str) -> Iterator[str]:
    """Against its type."""
    if stage.type == "data" and not stage.builder:
        yield f"{path}.builder: a stage of type data needs a builder: a Python module with a function build(folder, …)"
    if stage.type != "data":
        said = {"builder": stage.builder, "options": stage.options, "shards": stage.shards != 1}
        yield from (f"{path}.{name}: only a stage of type data has it" for name, value in said.items() if value)
    if stage.type in TRAINS and not stage.data:
        yield f"{path}.data: a stage of type {stage.type} needs data: a list of sources"
    if stage.type not in TRAINS:
        if stage.recipe:
            yield f"{path}.recipe: a stage of type {stage.type} does not train and has no recipe"
        for name in stage.train.keys() - {"checks"}:
            yield f"{path}.train.{name}: a stage of type {stage.type} does not train: only train.checks can be set"


def _gate(stage: Stage, recipe: Recipe, path: str) -> Iterator[str]:
    """A gate's metric must be one that the stage's own checks give."""
    names = list(dict.fromkeys(check.name for check in recipe.checks))
    # The second check of a name is called `<name>#2`.
    if stage.gate is not None and stage.gate.metric.rpartition(".")[0].partition("#")[0] not in names:
        given = f"they are {', '.join(names)}" if names else "it has none"
        yield f"{path}.gate.metric: no check of this stage gives {stage.gate.metric!r}; {given}"
