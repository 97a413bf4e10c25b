"""Why an attempt ended, from its Job and pods: the trainer's own last words first, then what Kubernetes knows.

    Rejected   a pod ended with code 42: the job or its data is wrong, trying again would not help
    Disrupted  evicted, preempted, drained or lost (DisruptionTarget), or stopped after a checkpoint (code 75)
    Crashed    anything else; CrashedAgain when the attempt before it failed at the same step in the same way

Of several pods the one that ended first is believed: those after it ended because of it. One that is disrupted
ends from then on, and one that never does is on a node that is gone, which is why the others have ended. Which rule of
the Job's failure policy matched is told only by a message for people, so the pods are asked first, and that text only
where none is left: a node removes an evicted pod within a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from services.operator.children import JobView, PodView
from services.operator.status import Failure

REJECTED, DISRUPTED, CRASHED, AGAIN = "Rejected", "Disrupted", "Crashed", "CrashedAgain"
EXIT_BAD_CONFIG, EXIT_STOPPED = 42, 75
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# In the words of the Job controller: `Container … failed with exit code 42 matching FailJob rule at index 1`.
_CODE = re.compile(r"with exit code (\d+) matching")
MESSAGE_CHARACTERS, LOG_CHARACTERS = 1024, 4096


def failure_of(job: JobView, pods: Sequence[PodView], before: Failure | None, now: datetime) -> Failure:
    """Of an attempt whose Job has failed or is about to; `before` is the stage's failure before it."""
    failure = _failure(job, pods, now)
    return failure.model_copy(update={"reason": AGAIN}) if _repeats(before, failure) else failure


def _failure(job: JobView, pods: Sequence[PodView], now: datetime) -> Failure:
    failed = [pod for pod in pods if pod.exit_code not in (None, 0) or pod.disrupted]
    # Kubernetes' times are whole seconds: in a tie the disruption came first, a crash does not evict its neighbours.
    failed.sort(key=lambda pod: (_end(pod), not pod.disrupted, pod.exit_code != EXIT_STOPPED))
    rejecting = [pod for pod in failed if pod.exit_code == EXIT_BAD_CONFIG]
    if not failed:
        return _by_message(job, now)
    pod = (rejecting or failed)[0]
    if rejecting:
        reason = REJECTED
    elif pod.disrupted or pod.exit_code == EXIT_STOPPED:
        reason = DISRUPTED
    else:
        reason = CRASHED
    return Failure(
        attempt=job.attempt,
        reason=reason,
        exit_code=pod.exit_code,
        pod=pod.name,
        node=pod.node,
        message=_sentence(pod)[:MESSAGE_CHARACTERS],
        log_tail=pod.log_tail[-LOG_CHARACTERS:],
        step=pod.step,
        time=now,
    )


def _by_message(job: JobView, now: datetime) -> Failure:
    """What the Job says of its pods, when they are gone."""
    said = next((message for kind, message in job.conditions if kind in ("Failed", "FailureTarget")), "")
    code = int(found[1]) if (found := _CODE.search(said)) else None
    reason = REJECTED if code == EXIT_BAD_CONFIG else CRASHED
    if code == EXIT_STOPPED or "condition DisruptionTarget" in said:
        reason = DISRUPTED
    message = (said or "its pods are gone")[:MESSAGE_CHARACTERS]
    return Failure(attempt=job.attempt, reason=reason, exit_code=code, message=message, time=now)


def _end(pod: PodView) -> datetime:
    """An eviction begins the end: its pod has time to save, and the others may give up before it has done so."""
    if pod.ended is None:
        return _FIRST if pod.disrupted else _LAST
    return min(pod.ended, pod.disrupted_since or pod.ended)


def lost(stage_attempt: int, job_name: str | None, now: datetime) -> Failure:
    """Of an attempt whose Job was deleted by somebody else."""
    message = f"Job {job_name} is gone before it had ended"
    return Failure(attempt=stage_attempt, reason=DISRUPTED, message=message, time=now)


def node_lost(stage_attempt: int, pod: PodView, before: Failure | None, now: datetime) -> Failure:
    """Of an attempt with a pod that never ended. What was taken for a crash `before` is what its node's end did."""
    message = f"node {pod.node} is gone: pod {pod.name} did not end"
    if before is not None and (before.reason == REJECTED or before.message == message):
        return before
    return Failure(
        attempt=stage_attempt, reason=DISRUPTED, pod=pod.name, node=pod.node, message=message, time=now
    ).model_copy(update={"log_tail": before.log_tail, "step": before.step} if before else {})


def preempted(stage_attempt: int, job_name: str | None, now: datetime) -> Failure:
    """Of an attempt whose running Job was suspended by its queue."""
    message = f"Job {job_name} was suspended while it ran: its queue has taken the nodes back"
    return Failure(attempt=stage_attempt, reason=DISRUPTED, message=message, time=now)


def _repeats(before: Failure | None, now: Failure) -> bool:
    return (
        before is not None
        and before.reason == now.reason == CRASHED
        and now.step is not None
        and before.attempt == now.attempt - 1
        and (before.step, before.exit_code, before.message) == (now.step, now.exit_code, now.message)
    )


def _sentence(pod: PodView) -> str:
    said = pod.told().get("reason")
    if isinstance(said, str) and said:
        return said
    if pod.words:
        return pod.words
    if pod.disrupted:
        return pod.disrupted
    if pod.exit_code is not None and pod.exit_code > 128:
        return f"killed by signal {pod.exit_code - 128} without a word"
    return f"ended with code {pod.exit_code} and without a word"
