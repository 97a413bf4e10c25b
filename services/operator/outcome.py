"""What follows from a failed attempt: another one now, another one later, or the end of the job."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from services.operator.draft import Draft
from services.operator.resource import Backoff, Stage
from services.operator.status import Failure, StageStatus
from services.operator.verdict import AGAIN, DISRUPTED, REJECTED


def decide(draft: Draft, stage: Stage, state: StageStatus, failure: Failure) -> None:
    """For an attempt that is over and has left nothing that runs."""
    state = state.to(job_name=None, job_uid=None)
    if failure.reason == REJECTED:
        fail(draft, state, "Rejected", failure.message)
    elif failure.reason == DISRUPTED:
        _disrupted(draft, stage, state.to(disruptions=state.disruptions + 1), failure)
    else:
        _crashed(draft, stage, state.to(restarts=state.restarts + 1), failure)


def fail(draft: Draft, state: StageStatus, reason: str, message: str) -> None:
    """The stage, and with it the job."""
    draft.put(state.to(phase="Failed", completion_time=draft.now, next_attempt_time=None))
    draft.status = draft.status.to(completion_time=draft.now)
    draft.condition("Failed", True, reason, f"stage {state.name}: {message}")
    draft.tell(reason, f"stage {state.name}: {message}", stage=state, warning=True)


def backoff(limits: Backoff, restarts: int, seed: str) -> timedelta:
    """Doubled each time up to the most, less up to a fifth: jitter that depends on the stage and try alone."""
    longest = min(limits.max, limits.initial * 2 ** min(restarts - 1, 32))
    fraction = int.from_bytes(hashlib.sha256(f"{seed}/{restarts}".encode()).digest()[:4], "big") / 2**32
    return timedelta(seconds=longest * (1 - 0.2 * fraction))


def _disrupted(draft: Draft, stage: Stage, state: StageStatus, failure: Failure) -> None:
    """Not the stage's fault: the next attempt at once, from a budget of its own."""
    if state.disruptions > stage.retry.disruption_limit:
        fail(draft, state, "TooManyDisruptions", f"disrupted {state.disruptions} times, now: {failure.message}")
        return
    draft.put(state.to(phase="Backoff", next_attempt_time=draft.now))
    draft.tell("Disrupted", f"stage {stage.name} starts again: {failure.message}", stage=state)


def _crashed(draft: Draft, stage: Stage, state: StageStatus, failure: Failure) -> None:
    if failure.reason == AGAIN:
        said = f"step {failure.step} failed twice running, a third time would not help: {failure.message}"
        fail(draft, state, "RepeatedFailureAtStep", said)
    elif state.restarts > stage.retry.limit:
        fail(draft, state, "TooManyRestarts", f"failed {state.restarts} times, now: {failure.message}")
    else:
        wait = backoff(stage.retry.backoff, state.restarts, f"{draft.world.job.uid}/{stage.name}")
        draft.put(state.to(phase="Backoff", next_attempt_time=draft.now + wait))
        said = f"stage {stage.name} starts again in {wait.total_seconds():.0f} s: {failure.message}"
        draft.tell("Restarting", said, stage=state, warning=True)
