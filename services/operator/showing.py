"""What people see: phase, current stage, the columns of kubectl, and the conditions that sum it up."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.operator.draft import Draft
from services.operator.status import Display, Progress, StageStatus

STALLED_AFTER = timedelta(seconds=90)
_PHASES = {"Queued": "Queued", "Pending": "Pending", "Suspended": "Suspended"}


def show(draft: Draft) -> None:
    """The last step of a plan that is not over yet."""
    current = next((one for one in draft.status.stages if one.phase != "Succeeded"), None)
    phase = _phase(draft, current)
    last = current or (draft.status.stages[-1] if draft.status.stages else None)
    draft.status = draft.status.to(
        phase=phase, current_stage=last.name if last else None, display=display(last) if last else None
    )
    suspended = phase == "Suspended"
    reason = "Suspended" if suspended else "Stopping" if draft.world.job.spec.suspend else "NotSuspended"
    draft.condition("Suspended", suspended, reason)
    _progressing(draft, phase, current)


def _phase(draft: Draft, current: StageStatus | None) -> str:
    if current is None:
        return "Complete"
    if current.phase == "Failed":
        return "Failed"
    if draft.world.job.spec.suspend and current.phase in ("Pending", "Suspended", "Backoff"):
        return "Suspended"
    if current.phase == "Pending" and current is not draft.status.stages[0]:
        return "Running"
    return _PHASES.get(current.phase, "Running")


def _progressing(draft: Draft, phase: str, current: StageStatus | None) -> None:
    accepted = draft.status.condition("Accepted")
    if current is None or phase in ("Complete", "Failed"):
        draft.condition("Progressing", False, phase)
        if phase == "Complete":
            draft.condition("Failed", False, "Complete")
        else:
            draft.condition("Complete", False, "Failed")
    elif _is_refused(draft):
        pass
    elif accepted is not None and accepted.status == "False":
        draft.condition("Progressing", False, accepted.reason, accepted.message)
    elif phase == "Suspended":
        draft.condition("Progressing", False, "Suspended")
    elif current.phase == "Backoff":
        at = current.next_attempt_time or draft.now
        draft.condition("Progressing", True, "Backoff", f"stage {current.name} starts again at {at:%H:%M:%S} UTC")
    elif current.phase == "Stopping":
        draft.condition("Progressing", True, "Stopping", f"stage {current.name} stops")
    elif current.phase == "Running" and (since := _silent(current.progress, draft.now)):
        _stalled(draft, current, since)
    elif "Progressing" in draft.said:
        pass
    elif current.phase == "Queued":
        said = f"attempt {current.attempt} of stage {current.name} is being made"
        draft.condition("Progressing", True, "Queued", said)
    elif current.phase == "Running":
        draft.condition("Progressing", True, "Running", f"stage {current.name} runs")


def _stalled(draft: Draft, stage: StageStatus, since: datetime) -> None:
    said = f"stage {stage.name} has told nothing since {since:%H:%M:%S} UTC; it may be evaluating, or hang"
    if not draft.had("Progressing", "Stalled"):
        draft.tell("Stalled", said, stage=stage, warning=True)
    draft.condition("Progressing", None, "Stalled", said)


def _is_refused(draft: Draft) -> bool:
    """What the API would not do stays said while it is asked for again (services/operator/apply.py)."""
    return any(draft.had("Progressing", f"{type(action).__name__}Refused") for action in draft.actions)


def _silent(progress: Progress | None, now: datetime) -> datetime | None:
    """Since when, if it is three times longer than a step takes and longer than any short pause."""
    if progress is None or progress.updated_at is None:
        return None
    steps = max(progress.total - progress.step, 1)
    expected = timedelta(seconds=3 * (progress.eta_seconds or 0) / steps)
    return progress.updated_at if now - progress.updated_at > max(STALLED_AFTER, expected) else None


def display(stage: StageStatus) -> Display:
    """Columns STEP, LOSS, ETA and ATTEMPT of one stage."""
    told = stage.progress
    attempt = str(stage.attempt or "")
    if stage.shards is not None and told is None and stage.type == "data":
        return Display(step=f"{len(stage.shards)} pieces", attempt=attempt)
    if stage.canary is not None:
        return Display(step=f"{stage.canary.percent}%", attempt=attempt)
    if told is None:
        return Display(attempt=attempt)
    loss = f"{told.loss:.4g}" if told.loss is not None else ""
    eta = duration(told.eta_seconds) if told.eta_seconds is not None and stage.phase == "Running" else ""
    return Display(step=f"{told.step}/{told.total}", loss=loss, eta=eta, attempt=attempt)


def duration(seconds: float) -> str:
    """As kubectl writes ages: `45s`, `12m`, `3h20m`, `2d4h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
