"""A stage that runs in pods: its attempts, one after another, never two at once.

    Pending ─▶ Queued ─▶ Running ─▶ Succeeded
                 ▲          ├─▶ Stopping ─▶ Backoff ─▶ (the next attempt) or Failed
                 └──────────┴─▶ Stopping ─▶ Suspended ─▶ (the next attempt)

An attempt's number is in the status before its Job is made; the Job is made suspended, and activated when the status
knows its uid; the next number is given when that Job is over or gone and has no pod left. So whatever dies in between,
the status says which Job there has to be, and a Job that a late worker makes for an attempt of the past never runs.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from services.operator.actions import Activate, CreateAttempt, DeleteJob, ForceDeletePod
from services.operator.children import JobView, PodView
from services.operator.draft import Draft
from services.operator.naming import attempt_name, output_folder
from services.operator.outcome import decide
from services.operator.resource import Stage
from services.operator.status import Artifact, Checkpoint, StageStatus
from services.operator.verdict import EXIT_STOPPED, failure_of, lost, preempted

FORCE_DELETE_AFTER = timedelta(minutes=10)


def advance(draft: Draft, stage: Stage) -> None:
    """One step on for a stage whose turn it is."""
    state = draft.of(stage)
    job = draft.world.job_named(state.job_name)
    if job is not None:
        _force_delete_lost_pods(draft, job)
        if state.job_uid is None:
            state = draft.change(stage, job_uid=job.uid)
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
        draft.change(stage, phase="Suspended", job_name=None)
    else:
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
    pods = draft.world.pods_of(job)
    if any(pod.phase != "Pending" for pod in pods):
        if state.phase != "Running":
            draft.tell("Started", f"attempt {state.attempt} of stage {stage.name} runs", stage=state)
        draft.change(stage, phase="Running", start_time=state.start_time or draft.now)
        return
    waits = next((pod.unscheduled for pod in pods if pod.unscheduled), "its pods are being started")
    draft.condition("Progressing", True, "Queued", f"stage {stage.name}: {waits}")


def _failing(draft: Draft, stage: Stage, state: StageStatus, job: JobView) -> None:
    """Why is written down while the pods are still there; what follows is decided when they are not any more."""
    failure = state.failure
    if failure is None:
        failure = failure_of(job, draft.world.pods_of(job), state.last_failure, draft.now)
        state = draft.change(stage, phase="Stopping", last_failure=failure)
        if failure.exit_code == EXIT_STOPPED and failure.step is not None:
            state = draft.change(stage, checkpoint=Checkpoint(step=failure.step, time=draft.now))
    if job.is_over:
        decide(draft, stage, state, failure)


def _gone(draft: Draft, stage: Stage, state: StageStatus) -> None:
    """Its Job was there and is not any more: stopped by us, or deleted by somebody."""
    if state.failure is None and state.phase == "Stopping":
        state = draft.change(stage, phase="Suspended", job_name=None, job_uid=None)
        draft.tell("Suspended", f"stage {stage.name} has stopped and goes on from its checkpoint", stage=state)
        return
    failure = state.failure or lost(state.attempt, state.job_name, draft.now)
    decide(draft, stage, draft.change(stage, last_failure=failure), failure)


def _succeeding(draft: Draft, stage: Stage, job: JobView) -> None:
    if not job.is_over:
        return
    told = next((pod.told() for pod in draft.world.pods_of(job) if pod.told().get("code") == 0), {})
    state = draft.change(stage, phase="Succeeded", completion_time=draft.now, metrics=told.get("metrics"))
    made = told.get("artifact")
    if stage.type != "eval":
        digest = made.get("digest") if isinstance(made, dict) else None
        state = draft.change(
            stage, artifact=Artifact(uri=model_uri(draft, stage), digest=digest, step=told.get("step"))
        )
    draft.tell("StageComplete", f"stage {stage.name} is complete", stage=state)


def _between(draft: Draft, stage: Stage) -> None:
    """No attempt is there: Pending, Backoff or Suspended."""
    state = draft.of(stage)
    if draft.world.job.spec.suspend:
        if state.attempt:
            draft.change(stage, phase="Suspended")
    elif state.phase == "Backoff" and state.next_attempt_time and state.next_attempt_time > draft.now:
        draft.look_again(state.next_attempt_time)
    elif is_edited(state, stage):
        said = f"stage {stage.name} was changed after it had started: change it back, or make another job"
        draft.condition("Accepted", False, "ImmutableField", said)
    else:
        _begin(draft, stage, state.attempt + 1)


def _begin(draft: Draft, stage: Stage, number: int) -> None:
    job = draft.world.job
    name = attempt_name(job.name, stage.name, job.uid, number)
    fresh = {"job_uid": None, "next_attempt_time": None, "progress": None}
    draft.change(stage, phase="Queued", attempt=number, job_name=name, spec_hash=stage.spec_hash, **fresh)
    draft.condition("Progressing", True, "Queued", f"attempt {number} of stage {stage.name} is being made")
    draft.do(CreateAttempt(stage.name, number))


def is_edited(state: StageStatus, stage: Stage) -> bool:
    """What the API server's rules refuse, on a cluster that does not know them."""
    return state.attempt > 0 and state.spec_hash is not None and state.spec_hash != stage.spec_hash


def model_uri(draft: Draft, stage: Stage) -> str:
    """Of the model that the stage leaves, as KServe reads it."""
    job = draft.world.job
    return f"pvc://{job.spec.output.pvc}/{output_folder(job.name, job.uid)}/{stage.name}/model"


def _force_delete_lost_pods(draft: Draft, job: JobView) -> None:
    for pod in draft.world.pods_of(job):
        if _is_lost(pod, draft.now):
            draft.do(ForceDeletePod(pod.name, pod.uid))
            draft.tell("NodeLost", f"pod {pod.name} on {pod.node} does not end; it is given up", warning=True)


def _is_lost(pod: PodView, now: datetime) -> bool:
    return pod.deleting_since is not None and not pod.is_over and now - pod.deleting_since > FORCE_DELETE_AFTER
