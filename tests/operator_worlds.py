"""Worlds for the tables about `plan`: a stage in the midst of its work, with its Job and pods; and `look`, which plans.

Whatever world is looked at, `look` checks what holds for every one: the same question has the same answer; the status
fits its definition (deploy/operator/crd.yaml) and survives being written and read; and whoever looks again a second
later, with that status written and nothing else new, changes nothing and tells nothing. So no status flaps, and no
Event comes at every look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml

from services.operator.actions import Action, Emit
from services.operator.children import JobView, PodView
from services.operator.draft import Plan
from services.operator.naming import attempt_name
from services.operator.plan import plan
from services.operator.resource import FINALIZER, IN_PODS, Stage, TrainingJob, read
from services.operator.status import Condition, Failure, StageStatus, Status
from services.operator.world import World
from tests.operator_model import KEY, training_job

Raw = dict[str, Any]
CRD = yaml.safe_load((Path(__file__).parents[1] / "deploy" / "operator" / "crd.yaml").read_text("utf-8"))
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NEW = Status()


def closed(schema: Any) -> Any:
    """The schema, with no field beside those that it names: the API server would drop them without a word."""
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) if key != "properties" else value for key, value in schema.items()}
    if "properties" in schema:
        inner["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        inner["additionalProperties"] = False
    return inner


DEFINED = jsonschema.Draft202012Validator(
    closed(CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"])
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def in_future(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


# The job.


def stage(name: str = "align", **fields: Any) -> Raw:
    return {"name": name, "type": "align", **fields}


ALIGN, CHAT, TWO_NODES = stage(), stage("chat", type="chat"), stage(parallelism={"nodes": 2})
EVAL, MERGE, DATA = stage("test", type="eval"), stage("merge", type="merge"), stage("data", type="data", shards=3)


def training(*stages: Raw, status: Status = NEW, **spec: Any) -> TrainingJob:
    """As it was read, with our finalizer."""
    job = read(training_job(*stages, **spec))
    return job.model_copy(update={"finalizers": (FINALIZER,), "status": status})


def name_of(stage: str, attempt: int = 1) -> str:
    """Of an attempt's Job; its uid is `uid-of-` and that."""
    return attempt_name(KEY[1], stage, KEY[2], attempt)


def at(raw: Raw, phase: str, attempt: int = 1, **fields: Any) -> StageStatus:
    """That stage's part of the status; in phases that have one, with a Job that was seen."""
    name = name_of(raw["name"], attempt)
    has_job = raw["type"] in IN_PODS and phase in ("Queued", "Running", "Stopping", "Succeeded")
    job = {"job_name": name, "job_uid": f"uid-of-{name}"} if has_job else {}
    known = {"spec_hash": Stage.model_validate({**raw, "raw": raw}).spec_hash, "attempt": attempt}
    begun = {"start_time": ago(60)} if phase in ("Running", "Stopping") else {}
    return StageStatus(name=raw["name"], type=raw["type"], phase=phase).to(**{**known, **job, **begun, **fields})


def failed(attempt: int = 1, reason: str = "Crashed", **fields: Any) -> Failure:
    """What a status remembers of an attempt that has ended."""
    return Failure.model_validate({"attempt": attempt, "reason": reason, "message": "boom", "time": ago(9), **fields})


def world(*stages: Raw, states: Sequence[StageStatus] = (), status: Mapping[str, Any] = {}, **spec: Any) -> World:
    """Without any child; `status` says more of it than its stages."""
    known = Status(phase="Running", start_time=ago(3600), stages=tuple(states)).to(**status)
    return World(training(*stages, status=known, **spec))


def at_work(
    raw: Raw = ALIGN,
    phase: str = "Running",
    attempt: int = 1,
    *,
    state: Mapping[str, Any] = {},
    job: Mapping[str, Any] | None = {},
    pods: Sequence[Mapping[str, Any]] = ({},),
    then: Sequence[Raw] = (),
    **spec: Any,
) -> World:
    """A stage in that phase, whose pods run: what is otherwise, the mappings say. `then` are stages behind it."""
    known = at(raw, phase, attempt).to(**state)
    made = world(raw, *then, states=[known], **spec)
    views = [child(known, **{"active": len(pods), **job})] if job is not None else []
    return replace(made, jobs=tuple(views), pods=tuple(pod(known, index, **one) for index, one in enumerate(pods)))


def changed(before: World, **fields: Any) -> World:
    """With other facts about the TrainingJob itself."""
    return replace(before, job=before.job.model_copy(update=fields))


# Its children.


def child(state: StageStatus, **fields: Any) -> JobView:
    assert state.job_name is not None
    named = {"name": state.job_name, "uid": f"uid-of-{state.job_name}", "stage": state.name, "attempt": state.attempt}
    return JobView(**{**named, "started": True, **fields})


def pod(state: StageStatus, index: int = 0, **fields: Any) -> PodView:
    name = f"{name_of(state.name, state.attempt)}-{index}"
    named = {"name": name, "uid": f"uid-of-{name}", "stage": state.name, "attempt": state.attempt, "index": index}
    return PodView(**{**named, "phase": "Running", "node": f"node-{index}", **fields})


def ended(code: int, words: str = "", seconds_ago: float = 5, /, **fields: Any) -> Raw:
    """Of a pod: its container has ended with that code and these last words."""
    over = {"phase": "Failed" if code else "Succeeded", "exit_code": code, "ended": ago(seconds_ago), "words": words}
    return {**over, **fields}


FAILED: Raw = {"conditions": (("FailureTarget", "a pod failed"), ("Failed", "a pod failed")), "active": 0}
ABOUT_TO_FAIL: Raw = {"conditions": (("FailureTarget", "a pod failed"),)}
COMPLETE: Raw = {"conditions": (("Complete", ""),), "active": 0}


# What is planned.


def look(here: World, now: datetime = NOW) -> Plan:
    """Plans, and checks what holds for all plans."""
    made = plan(here, now)
    assert plan(here, now) == made
    written = made.status.to_json()
    if here.job.deleting_since is None:
        assert not list(DEFINED.iter_errors(written)), [error.message for error in DEFINED.iter_errors(written)]
    known = Status.model_validate(written)
    again = plan(changed(here, status=known), now + timedelta(seconds=1))
    assert again.status.to_json() == written
    assert not told(again)
    return made


def after(here: World, made: Plan) -> World:
    """The world when that plan's status is written, and nothing is done yet."""
    return changed(here, status=Status.model_validate(made.status.to_json()))


def of(made: Plan, name: str = "align") -> StageStatus:
    found = made.status.stage(name)
    assert found is not None
    return found


def said(made: Plan, kind: str) -> str:
    """Status and reason of a condition."""
    found = made.status.condition(kind)
    return f"{found.status} {found.reason}" if found else ""


def condition(kind: str, truth: str, reason: str) -> Condition:
    """As it stood in the status before, for an hour."""
    return Condition(type=kind, status=truth, reason=reason, last_transition_time=ago(3600), observed_generation=1)


def acts(made: Plan) -> list[Action]:
    """All that is done, beside telling."""
    return [action for action in made.actions if not isinstance(action, Emit)]


def warned(made: Plan) -> list[str]:
    """Those that are warnings."""
    return [action.reason for action in made.actions if isinstance(action, Emit) and action.warning]


def told(made: Plan) -> list[str]:
    """The reasons of Events, in their order."""
    return [action.reason for action in made.actions if isinstance(action, Emit)]
