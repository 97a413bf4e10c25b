"""The Jobs and pods of a TrainingJob, in the few facts that a decision needs.

Which attempt of which stage a child belongs to is in its labels; that it is ours is in the label with our uid, which
a job of the same name, deleted and made again, does not share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

JOB, JOB_UID, STAGE, ATTEMPT = "ziya.dev/job", "ziya.dev/job-uid", "ziya.dev/stage", "ziya.dev/attempt"
QUEUE = "kueue.x-k8s.io/queue-name"
CONTAINER = "trainer"


@dataclass(frozen=True)
class PodView:
    """One pod. `exit_code` and `words` (its termination message) are known once its container has ended."""

    name: str
    uid: str
    stage: str
    attempt: int
    phase: str
    index: int = 0
    node: str | None = None
    disrupted: str = ""
    disrupted_since: datetime | None = None
    unscheduled: str = ""
    waits: str = ""
    exit_code: int | None = None
    ended: datetime | None = None
    words: str = ""
    deleting_since: datetime | None = None
    log_tail: str = ""

    @property
    def is_over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    def told(self) -> dict[str, Any]:
        """Its last words as the trainer writes them; empty when they are something else (or nothing)."""
        try:
            said = json.loads(self.words)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def step(self) -> int | None:
        """The last one that it told of."""
        step = self.told().get("step")
        return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


@dataclass(frozen=True)
class JobView:
    """One Job; `queued` when it is in the hands of a queue, `edited` says what somebody has changed of it. `conditions`
    are those that are True, with a message."""

    name: str
    uid: str
    stage: str
    attempt: int
    suspended: bool = False
    queued: bool = False
    started: bool = False
    active: int = 0
    terminating: int = 0
    deleting: bool = False
    conditions: tuple[tuple[str, str], ...] = ()
    edited: str = ""

    def has(self, *kinds: str) -> bool:
        return any(kind in kinds for kind, _ in self.conditions)

    @property
    def is_over(self) -> bool:
        """Complete or Failed, and no pod of it is left that does anything."""
        return self.has("Complete", "Failed") and not self.active and not self.terminating

    @property
    def is_live(self) -> bool:
        return not self.is_over


def read_job(raw: Mapping[str, Any]) -> JobView:
    meta, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status") or {}
    labels = meta.get("labels", {})
    true = tuple(
        (one["type"], one.get("message", "")) for one in status.get("conditions") or [] if one["status"] == "True"
    )
    return JobView(
        name=meta["name"],
        uid=meta["uid"],
        stage=labels.get(STAGE, ""),
        attempt=_number(labels.get(ATTEMPT)),
        suspended=bool(spec.get("suspend")),
        queued=QUEUE in labels,
        started=bool(status.get("startTime")),
        active=status.get("active") or 0,
        terminating=status.get("terminating") or 0,
        deleting="deletionTimestamp" in meta,
        conditions=true,
        edited=_edited(spec),
    )


def _edited(spec: Mapping[str, Any]) -> str:
    """All that Kubernetes lets anybody change of a gang that has begun is how many pods it has."""
    asked, made = spec.get("completions", 1), spec.get("parallelism", 1)
    return "" if asked == made else f"its parallelism is {made}, and it has {asked} nodes"


def read_pod(raw: Mapping[str, Any]) -> PodView:
    meta, status = raw["metadata"], raw.get("status") or {}
    labels = meta.get("labels", {})
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    disruption, scheduled = conditions.get("DisruptionTarget", {}), conditions.get("PodScheduled", {})
    ended = _ended(status)
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        stage=labels.get(STAGE, ""),
        attempt=_number(labels.get(ATTEMPT)),
        phase=status.get("phase", "Pending"),
        index=_number(labels.get("batch.kubernetes.io/job-completion-index")),
        node=raw.get("spec", {}).get("nodeName"),
        disrupted=_said(disruption) if disruption.get("status") == "True" else "",
        disrupted_since=_time(disruption.get("lastTransitionTime")) if disruption.get("status") == "True" else None,
        unscheduled=_said(scheduled) if scheduled.get("status") == "False" else "",
        waits=_waits(status),
        exit_code=ended.get("exitCode"),
        ended=_time(ended.get("finishedAt")),
        words=ended.get("message") or "",
        deleting_since=_time(meta.get("deletionTimestamp")),
    )


def _ended(status: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in status.get("containerStatuses") or []:
        if container["name"] == CONTAINER:
            ended: Mapping[str, Any] = (container.get("state") or {}).get("terminated") or {}
            return ended
    return {}


def _waits(status: Mapping[str, Any]) -> str:
    """Why its container does not start, where that is more than that it is being started."""
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message') or 'no more is said'}"
    return ""


def _number(label: str | None) -> int:
    """0 where somebody has written something else."""
    return int(label) if label and label.isdecimal() else 0


def _said(condition: Mapping[str, Any]) -> str:
    return str(condition.get("message") or condition.get("reason") or condition["type"])


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
