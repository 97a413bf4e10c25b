"""Progress into the status, at most every few seconds a job: what the trainer posted last, if it still counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.operator.cluster import Cluster
from services.operator.gather import fetch
from services.operator.resource import Key
from services.operator.showing import display
from services.operator.status import Progress

# One for each stage: what a manager has applied before and does not apply again is removed.
MANAGER = "ziya-progress-{stage}"


def flush(cluster: Cluster, key: Key, stage: str, attempt: int, told: Mapping[str, Any]) -> None:
    """Server-side apply under a manager of its own, so that no decision has to be made anew for it. Raises ApiError."""
    job = fetch(cluster, key)
    state = job.status.stage(stage) if job is not None else None
    if state is None or state.attempt != attempt or state.phase not in ("Queued", "Running", "Stopping"):
        return
    progress = Progress.model_validate({**told, "attempt": attempt})
    if state.progress and state.progress.attempt == attempt and state.progress.step > progress.step:
        return
    shown = display(state.to(progress=progress))
    status = {
        "stages": [{"name": stage, "progress": progress.model_dump(mode="json", by_alias=True, exclude_none=True)}],
        "display": shown.model_dump(by_alias=True),
    }
    cluster.apply_status(key.namespace, key.name, status, MANAGER.format(stage=stage))
