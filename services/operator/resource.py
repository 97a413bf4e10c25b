"""A TrainingJob as the operator reads it: its spec in the parts that decide something, its status whole.

The CRD (deploy/operator/crd.yaml) is the contract and has checked every object; here unknown fields pass, so that an
older operator lives with a newer CRD. What the fields of a recipe mean is the trainer's business: it gets stages whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from services.operator.status import Status

GROUP, VERSION, KIND, PLURAL = "ziya.dev", "v1alpha1", "TrainingJob", "trainingjobs"
FINALIZER = "ziya.dev/stop-stages"
TRAINS = frozenset({"vision", "pretrain", "align", "instruct", "chat"})
IN_PODS = TRAINS | {"eval"}


class Key(NamedTuple):
    """Which object: its uid tells it from another of the same name. A message carries it as a list."""

    namespace: str
    name: str
    uid: str


class Part(BaseModel):
    """A frozen part of an object, by Kubernetes' camelCase names."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Backoff(Part):
    initial: float = 10.0
    max: float = 600.0


class Retry(Part):
    limit: int = 3
    disruption_limit: int = 20
    backoff: Backoff = Backoff()


class Parallelism(Part):
    nodes: int = 1
    procs_per_node: int = 1


class Checkpointing(Part):
    grace_seconds: int = 30


class Stage(Part):
    """One stage; `raw` is the whole of it, as the trainer gets it."""

    name: str
    type: str
    needs: tuple[str, ...] = ()
    parallelism: Parallelism = Parallelism()
    resources: dict[str, Any] = {}
    retry: Retry = Retry()
    checkpoint: Checkpointing = Checkpointing()
    shards: int = 1
    raw: dict[str, Any] = {}

    @property
    def spec_hash(self) -> str:
        """Of everything that may not change once the stage has started."""
        fixed = {key: value for key, value in self.raw.items() if key not in ("retry", "resources", "parallelism")}
        fixed["parallelism"] = {k: v for k, v in self.raw.get("parallelism", {}).items() if k != "nodes"}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


class Claim(Part):
    """A volume claim that the pods see at `path`."""

    claim: str
    path: str
    read_only: bool = True


class Pod(Part):
    """What the pods of all stages have in common."""

    image: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    claims: tuple[Claim, ...] = ()
    shared_memory: str | None = None


class Output(Part):
    pvc: str | None = None


class CanaryGate(Part):
    """The first value of this instant query must be at least so much, before every rise."""

    prometheus: str
    query: str
    at_least: float


class Promotion(Part):
    """Which InferenceService takes the model, and how fast traffic moves to it."""

    inference_service: str
    runtime: str | None = None
    steps: tuple[int, ...] = (10, 50, 100)
    step_seconds: float = 300.0
    ready_seconds: float = 600.0
    gate: CanaryGate | None = None


class Spec(Part):
    stages: tuple[Stage, ...] = ()
    output: Output = Output()
    pod: Pod = Pod()
    queue_name: str | None = None
    priority_class_name: str | None = None
    suspend: bool = False
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    promotion: Promotion | None = None


class TrainingJob(Part):
    """One object. `raw_spec` is what the trainer reads, `version` the resourceVersion that was read."""

    namespace: str
    name: str
    uid: str
    version: str
    generation: int = 1
    finalizers: tuple[str, ...] = ()
    created: datetime
    deleting_since: datetime | None = None
    spec: Spec
    status: Status = Status()
    raw_spec: dict[str, Any] = Field(default={}, repr=False)

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name, self.uid)

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.spec.stages if stage.name == name), None)

    @property
    def is_over(self) -> bool:
        return self.status.phase in ("Complete", "Failed")


def read(raw: Mapping[str, Any]) -> TrainingJob:
    """From the API's JSON."""
    meta, spec = raw["metadata"], dict(raw.get("spec", {}))
    stages = [{**stage, "raw": stage} for stage in spec.get("stages", [])]
    return TrainingJob(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=meta["resourceVersion"],
        generation=meta.get("generation", 1),
        finalizers=tuple(meta.get("finalizers", ())),
        created=meta["creationTimestamp"],
        deleting_since=meta.get("deletionTimestamp"),
        spec=Spec.model_validate({**spec, "stages": stages}),
        status=Status.model_validate(raw.get("status") or {}),
        raw_spec=spec,
    )
