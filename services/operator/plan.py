"""What is to be done about a TrainingJob, decided from what there is and what time it is, and from nothing else.

`plan` is pure: no clock, no network, no chance. It may be asked twice, late, or by two workers at once: the status it
gives is written under the version that it was made from, so that only one of two answers counts, and its actions
follow from that status alone. All of the operator's behaviour is in here and in the files of the kinds of stages.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from services.operator import attempts, data_stage, promotion
from services.operator.actions import AddFinalizer, DeleteJob, DeleteTrainingJob, RemoveFinalizer
from services.operator.children import JobView
from services.operator.draft import Draft, Plan
from services.operator.outcome import fail
from services.operator.resource import FINALIZER, IN_PODS, Stage
from services.operator.showing import show
from services.operator.status import StageStatus, Status
from services.operator.world import World

GIVE_UP_DELETING = timedelta(minutes=2)


def plan(world: World, now: datetime) -> Plan:
    """Raises nothing: whatever an object says, there is something to be told of it."""
    draft = Draft(world, now, world.job.status)
    if world.job.deleting_since is not None:
        _leave(draft, world.job.deleting_since)
        return draft.plan()
    if world.job.is_over:
        _rest(draft)
        return draft.plan()
    draft.status = _prepared(world)
    if _acceptable(draft):
        _go_on(draft)
    show(draft)
    return draft.plan()


def _leave(draft: Draft, since: datetime) -> None:
    """Deleted: its Jobs stop first. What cannot be stopped in time is left to the garbage collector."""
    grace = max((stage.checkpoint.grace_seconds for stage in draft.world.job.spec.stages), default=30)
    left = [job for job in draft.world.jobs if job.is_live]
    if left and draft.now - since < GIVE_UP_DELETING + timedelta(seconds=grace):
        _stop(draft, left)
        draft.look_again(draft.now + timedelta(seconds=5))
    elif FINALIZER in draft.world.job.finalizers:
        draft.do(RemoveFinalizer())


def _rest(draft: Draft) -> None:
    """Complete or Failed, which is final."""
    _stop(draft, [job for job in draft.world.jobs if job.is_live])
    lives, ended = draft.world.job.spec.ttl_seconds_after_finished, draft.status.completion_time
    if lives is not None and ended is not None:
        end = ended + timedelta(seconds=lives)
        if draft.now >= end:
            draft.do(DeleteTrainingJob())
        else:
            draft.look_again(end)


def _stop(draft: Draft, jobs: list[JobView]) -> None:
    draft.do(*(DeleteJob(job.name, job.uid) for job in jobs if not job.deleting))


def _prepared(world: World) -> Status:
    """A status with every stage of the spec in its order; a stage that had begun stays even when it is taken out."""
    status, spec = world.job.status, world.job.spec
    names = {stage.name for stage in spec.stages}
    kept = [one for one in status.stages if one.name not in names and one.phase != "Pending"]
    known = {one.name: one for one in status.stages if one.phase != "Pending"}
    stages = [known.get(one.name) or StageStatus(name=one.name, type=one.type) for one in spec.stages]
    return status.to(stages=(*kept, *stages), observed_generation=world.job.generation)


def _acceptable(draft: Draft) -> bool:
    job = draft.world.job
    names = {stage.name for stage in job.spec.stages}
    edited = [stage.name for stage in job.spec.stages if attempts.is_edited(draft.of(stage), stage)]
    edited += [one.name for one in draft.status.stages if one.name not in names]
    edited += _out_of_turn(draft)
    if job.spec.output.pvc is None and any(stage.type in IN_PODS | {"data"} for stage in job.spec.stages):
        said = "spec.output.pvc is not set: on a cluster the results need a claim that all pods can write to"
        draft.condition("Accepted", False, "NoClaim", said)
        return False
    if edited:
        said = f"stage {edited[0]} was changed after it had started: change it back, or make another job"
        draft.condition("Accepted", False, "ImmutableField", said)
    else:
        draft.condition("Accepted", True, "Accepted")
    return True


def _out_of_turn(draft: Draft) -> list[str]:
    """What has begun and is not done, though it was taken out since, or put behind a stage that has not begun."""
    stages = draft.world.job.spec.stages
    turn = next((stage.name for stage in stages if draft.of(stage).phase != "Succeeded"), None)
    return [one.name for one in draft.status.stages if one.phase not in ("Pending", "Succeeded") and one.name != turn]


def _go_on(draft: Draft) -> None:
    job = draft.world.job
    if FINALIZER not in job.finalizers:
        draft.do(AddFinalizer())
    if _overdue(draft) or _stray(draft) or _out_of_turn(draft):
        return
    for stage in job.spec.stages:
        if draft.of(stage).phase != "Succeeded":
            _advance(draft, stage)
        if draft.of(stage).phase != "Succeeded":
            return
    draft.status = draft.status.to(completion_time=draft.now)
    draft.condition("Complete", True, "Complete", "all stages are complete")
    draft.tell("Complete", "all stages are complete")


def _advance(draft: Draft, stage: Stage) -> None:
    if stage.type in IN_PODS:
        attempts.advance(draft, stage)
    elif stage.type == "data":
        data_stage.advance(draft, stage)
    elif stage.type == "promote":
        promotion.advance(draft, stage)
    elif stage.type != "merge":
        said = f"stage {stage.name}: this operator does not know the type {stage.type}, a newer one may"
        draft.condition("Accepted", False, "UnknownType", said)
    elif not draft.world.job.spec.suspend:
        # merge: every stage with LoRA leaves a merged model, checked against the one with adapters.
        state = draft.change(stage, phase="Succeeded", attempt=1, completion_time=draft.now)
        draft.tell("StageComplete", f"stage {stage.name}: the stage before it has left a merged model", stage=state)


def _stray(draft: Draft) -> bool:
    """Jobs of attempts of the past, made by a worker that was late. Nothing goes on before they are gone."""
    current = {stage.job_name for stage in draft.status.stages}
    strays = [job for job in draft.world.jobs if job.is_live and job.name not in current]
    _stop(draft, strays)
    return bool(strays)


def _overdue(draft: Draft) -> bool:
    """Past activeDeadlineSeconds, counted from the start or from the last resume."""
    limit, job = draft.world.job.spec.active_deadline_seconds, draft.world.job
    if job.spec.suspend:
        draft.status = draft.status.to(start_time=None)
        return False
    began = draft.status.start_time or draft.now
    draft.status = draft.status.to(start_time=began)
    if limit is None:
        return False
    end = began + timedelta(seconds=limit)
    if draft.now < end:
        draft.look_again(end)
        return False
    stage = next((one for one in draft.status.stages if one.phase != "Succeeded"), None)
    if stage is None:
        return False
    if stage.canary is not None and stage.phase == "Stopping":
        return False  # its traffic goes back, and then it has failed anyway
    give_up = fail if stage.canary is None else promotion.refuse
    give_up(draft, stage, "DeadlineExceeded", f"the job has not ended in {limit} seconds")
    _stop(draft, [one for one in draft.world.jobs if one.is_live])
    return True
