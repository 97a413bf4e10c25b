"""A stage that runs in pods: its attempts, one after another, never two at once.

    Pending ─▶ Queued ─▶ Running ─▶ Succeeded
                 ▲          ├─▶ Stopping ─▶ Backoff ─▶ (the next attempt) or Failed
                 └──────────┴─▶ Stopping ─▶ Suspended ─▶ (the next attempt)

An attempt's number is in the status before its Job is made; the Job is made suspended, and activated when the status
knows its uid; the next number is given when that Job is over or gone and has no pod left. So whatever dies in between,
the status says which Job there has to be, and a Job that a late worker makes for an attempt of the past never runs.
"""

from __future__ import annotations

import math
from typing import Any

from services.operator.actions import Activate, CreateAttempt, DeleteJob, ForceDeletePod
from services.operator.children import JobView, PodView
from services.operator.draft import Draft
from services.operator.naming import attempt_name, output_folder
from services.operator.outcome import decide
from services.operator.resource import Stage
from services.operator.status import Artifact, Checkpoint, StageStatus
from services.operator.verdict import DISRUPTED, EXIT_STOPPED, failure_of, lost, node_lost, preempted


def advance(draft: Draft, stage: Stage) -> None:
    """One step on for a stage whose turn it is."""
    state = draft.of(stage)
    job = draft.world.job_named(state.job_name)
    if job is not None and state.job_uid is None:
        state = draft.change(stage, job_uid=job.uid)
    if state.job_name is not None:
        state = _give_up_lost_pods(draft, stage, state, job)
    if state.job_uid is None:
        if state.job_name is not None:
            _unseen(draft, stage, state)
    elif job is None or job.uid != state.job_uid:
        _gone(draft, stage, state)
    elif job.has("Complete"):
        _succeeding(draft, stage, job)
    elif job.has("Failed", "FailureTarget"):
        _failing(draft, stage, state, job)
    else:
        _alive(draft, stage, state, job)
    if draft.of(stage).job_name is None and draft.of(stage).phase not in ("Succeeded", "Failed"):
        _between(draft, stage)


def _unseen(draft: Draft, stage: Stage, state: StageStatus) -> None:
    """The status names a Job that nobody has seen: whoever was to make it died, or it is about to be there."""
    if draft.world.job.spec.suspend:
        draft.change(stage, job_name=None)
    elif not is_edited(state, stage):
        draft.do(CreateAttempt(stage.name, state.attempt))


def _alive(draft: Draft, stage: Stage, state: StageStatus, job: JobView) -> None:
    if job.deleting and state.phase != "Stopping" and not draft.world.job.spec.suspend:
        draft.change(stage, phase="Stopping", last_failure=lost(state.attempt, job.name, draft.now))
    elif job.deleting:
        draft.change(stage, phase="Stopping")
    elif state.phase == "Stopping" or draft.world.job.spec.suspend:
        if state.phase != "Stopping":
            draft.tell("Suspending", f"stage {stage.name} saves a checkpoint and stops", stage=state)
        draft.change(stage, phase="Stopping")
        draft.do(DeleteJob(job.name, job.uid))
    elif job.suspended:
        _held(draft, stage, state, job)
    else:
        _at_work(draft, stage, state, job)
    if job.edited:
        said = f"Job {job.name} was edited by hand: {job.edited}; it is left alone until it ends"
        if not draft.had("Accepted", "JobEdited"):
            draft.tell("JobEdited", said, stage=state, warning=True)
        draft.condition("Accepted", True, "JobEdited", said)


def _held(draft: Draft, stage: Stage, state: StageStatus, job: JobView) -> None:
    """Not activated yet, not admitted by its queue yet, or preempted by it."""
    queue = draft.world.job.spec.queue_name
    if state.phase == "Running":
        draft.change(stage, phase="Stopping", last_failure=preempted(state.attempt, job.name, draft.now))
        draft.do(DeleteJob(job.name, job.uid))
    elif queue and job.queued:
        draft.condition("Progressing", True, "Queued", f"stage {stage.name} waits for queue {queue} to admit it")
    else:
        draft.do(Activate(job.name, job.uid))


def _at_work(draft: Draft, stage: Stage, state: StageStatus, job: JobView) -> None:
    pods = draft.world.pods_of(stage.name, state.attempt)
    if any(pod.phase != "Pending" for pod in pods):
        if state.phase != "Running":
            draft.tell("Started", f"attempt {state.attempt} of stage {stage.name} runs", stage=state)
        draft.change(stage, phase="Running", start_time=state.start_time or draft.now)
        return
    reasons = (pod.unscheduled or pod.waits for pod in pods)
    waits = next((reason for reason in reasons if reason), "its pods are being started")
    draft.condition("Progressing", True, "Queued", f"stage {stage.name}: {waits}")


def _failing(draft: Draft, stage: Stage, state: StageStatus, job: JobView) -> None:
    """Why is written down while the pods are still there; what follows is decided when they are not any more."""
    failure = state.failure
    if failure is None:
        pods = draft.world.pods_of(stage.name, state.attempt)
        failure = failure_of(job, pods, state.last_failure, draft.now)
        if failure.exit_code == EXIT_STOPPED:
            _saved(draft, stage, state, failure.step)
        if state.phase == "Stopping" and failure.reason == DISRUPTED:
            # It was told to stop, for a suspension, and did: `_gone` goes on from here.
            if not job.deleting:
                draft.do(DeleteJob(job.name, job.uid))
            return
        state = draft.change(stage, phase="Stopping", last_failure=failure)
    if job.is_over:
        decide(draft, stage, state, failure)


def _saved(draft: Draft, stage: Stage, state: StageStatus, step: int | None) -> None:
    if step is not None and (state.checkpoint is None or state.checkpoint.step != step):
        draft.change(stage, checkpoint=Checkpoint(step=step, time=draft.now))


def _gone(draft: Draft, stage: Stage, state: StageStatus) -> None:
    """Its Job was there and is not any more: stopped by us, or deleted by somebody."""
    if state.phase != "Stopping":
        failure = lost(state.attempt, state.job_name, draft.now)
        state = draft.change(stage, phase="Stopping", last_failure=failure)
    if any(not pod.is_over for pod in draft.world.pods_of(stage.name, state.attempt)):
        return  # `kubectl delete job` takes the Job at once and lets its pods end after it
    if state.failure is not None:
        decide(draft, stage, state, state.failure)
        return
    state = draft.change(stage, job_name=None, job_uid=None)
    draft.tell("Suspended", f"stage {stage.name} has stopped and goes on from its checkpoint", stage=state)


def _succeeding(draft: Draft, stage: Stage, job: JobView) -> None:
    if not job.is_over:
        return
    pods = draft.world.pods_of(job.stage, job.attempt)
    pod = next((pod for pod in pods if pod.told().get("code") == 0), None)
    told = pod.told() if pod else {}
    state = draft.change(stage, phase="Succeeded", completion_time=draft.now, metrics=_numbers(told.get("metrics")))
    if stage.type != "eval":
        made = told.get("artifact")
        digest = made.get("digest") if isinstance(made, dict) else None
        artifact = Artifact(
            uri=model_uri(draft, stage),
            digest=digest if isinstance(digest, str) else None,
            step=pod.step if pod else None,
        )
        state = draft.change(stage, artifact=artifact)
    draft.tell("StageComplete", f"stage {stage.name} is complete", stage=state)


def _numbers(metrics: Any) -> dict[str, float] | None:
    """Those of a pod's last words that a status can hold: it may have said anything, and JSON has no NaN."""
    if not isinstance(metrics, dict):
        return None
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _between(draft: Draft, stage: Stage) -> None:
    """No attempt is there: none was yet, or the last one has failed or was stopped for a suspension."""
    state = draft.of(stage)
    if draft.world.job.spec.suspend:
        if state.attempt:
            draft.change(stage, phase="Suspended")
    elif state.phase == "Backoff" and state.next_attempt_time and state.next_attempt_time > draft.now:
        draft.look_again(state.next_attempt_time)
    elif not is_edited(state, stage):
        _begin(draft, stage, state.attempt + 1)


def _begin(draft: Draft, stage: Stage, number: int) -> None:
    job = draft.world.job
    name = attempt_name(job.name, stage.name, job.uid, number)
    fresh = {"job_uid": None, "next_attempt_time": None, "progress": None}
    draft.change(stage, phase="Queued", attempt=number, job_name=name, spec_hash=stage.spec_hash, **fresh)
    draft.do(CreateAttempt(stage.name, number))


def is_edited(state: StageStatus, stage: Stage) -> bool:
    """What the API server's rules refuse, on a cluster that does not know them."""
    return state.spec_hash not in (None, stage.spec_hash)


def model_uri(draft: Draft, stage: Stage) -> str:
    """Of the model that the stage leaves, as KServe reads it."""
    job = draft.world.job
    return f"pvc://{job.spec.output.pvc}/{output_folder(job.name, job.uid)}/{stage.name}/model"


def _give_up_lost_pods(draft: Draft, stage: Stage, state: StageStatus, job: JobView | None) -> StageStatus:
    """Pods whose node does not answer: they would stay for ever. The Job goes with them, because its controller holds
    a pod that it has not seen end until the Job itself is to go."""
    pods = [pod for pod in draft.world.pods_of(stage.name, state.attempt) if _is_lost(pod, draft)]
    if not pods:
        return state
    draft.do(*(ForceDeletePod(pod.name, pod.uid) for pod in pods))
    if job is not None and not job.deleting:
        draft.do(DeleteJob(job.name, job.uid))
    failure = node_lost(state.attempt, pods[0], state.failure, draft.now)
    if failure != state.failure:
        said = f"pod {pods[0].name} on {pods[0].node} does not end; it is given up"
        draft.tell("NodeLost", said, stage=state, warning=True)
    return draft.change(stage, phase="Stopping", last_failure=failure)


def _is_lost(pod: PodView, draft: Draft) -> bool:
    """`deleting_since` is when its grace was over."""
    since = pod.deleting_since
    return since is not None and not pod.is_over and draft.now - since > draft.world.lost_after
