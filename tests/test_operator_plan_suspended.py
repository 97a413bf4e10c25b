"""A job that is suspended, in whatever phase it finds a stage, that is resumed, and that has a deadline.

A user who suspends pays nothing for it: what stops in time costs neither a restart nor a disruption, and a deadline
counts from the last resume.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.operator.actions import Action, CreateAttempt, DeleteJob, SetTraffic
from services.operator.status import Canary, Checkpoint, StageStatus
from services.operator.world import Serving, World
from tests.operator_worlds import (
    ABOUT_TO_FAIL,
    ALIGN,
    CHAT,
    COMPLETE,
    DATA,
    FAILED,
    MERGE,
    NOW,
    TWO_NODES,
    Raw,
    acts,
    after,
    ago,
    at,
    at_work,
    changed,
    child,
    ended,
    failed,
    in_future,
    look,
    name_of,
    of,
    said,
    stage,
    told,
    training,
    world,
)

NAME = name_of("align")
UID = f"uid-of-{NAME}"
DELETE = DeleteJob(NAME, UID)
STOPPED = ended(75, '{"code":75,"reason":"stopped after step 7","step":7}')
PROMOTE = stage("promote", type="promote")
PROMOTION = {"inferenceService": "chat"}


def suspended(raw: Raw = ALIGN, phase: str = "Running", **more: Any) -> World:
    return at_work(raw, phase, suspend=True, **more)


# What suspension finds, what it does, and how the stage and the job are called then.

FOUND: dict[str, tuple[World, list[Action], str, str]] = {
    "nothing begun": (World(training(ALIGN, suspend=True)), [], "Pending", "Suspended"),
    "a Job that nobody has made yet": (
        suspended(phase="Queued", state={"job_uid": None}, job=None, pods=()),
        [],
        "Suspended",
        "Suspended",
    ),
    "a Job that is not activated": (
        suspended(phase="Queued", job={"suspended": True}, pods=()),
        [DELETE],
        "Stopping",
        "Running",
    ),
    "a Job in a queue": (
        suspended(phase="Queued", job={"suspended": True, "queued": True}, pods=(), queueName="research"),
        [DELETE],
        "Stopping",
        "Running",
    ),
    "pods that wait": (suspended(phase="Queued", pods=({"phase": "Pending"},)), [DELETE], "Stopping", "Running"),
    "pods that run": (suspended(), [DELETE], "Stopping", "Running"),
    "a Job that is stopping": (suspended(phase="Stopping", job={"deleting": True}), [], "Stopping", "Running"),
    "a Job that stops for somebody else": (suspended(job={"deleting": True}), [], "Stopping", "Running"),
    "a Job that is gone": (suspended(phase="Stopping", job=None, pods=()), [], "Suspended", "Suspended"),
    "a wait for the next attempt": (
        world(ALIGN, states=[at(ALIGN, "Backoff", next_attempt_time=in_future(9))], suspend=True),
        [],
        "Suspended",
        "Suspended",
    ),
    "a wait that is over": (
        world(ALIGN, states=[at(ALIGN, "Backoff", next_attempt_time=ago(9))], suspend=True),
        [],
        "Suspended",
        "Suspended",
    ),
    "pieces of data": (world(DATA, states=[at(DATA, "Running")], suspend=True), [], "Suspended", "Suspended"),
    "a merge": (world(MERGE, suspend=True), [], "Pending", "Suspended"),
    "a promotion that has not begun": (
        world(ALIGN, PROMOTE, states=[at(ALIGN, "Succeeded")], suspend=True, promotion=PROMOTION),
        [],
        "Pending",
        "Suspended",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_suspension_stops_what_runs_and_begins_nothing(case: str) -> None:
    here, actions, phase, whole = FOUND[case]
    made = look(here)
    current = of(made, str(made.status.current_stage))
    assert (acts(made), current.phase, made.status.phase) == (actions, phase, whole)
    assert said(made, "Suspended") == ("True Suspended" if whole == "Suspended" else "False Stopping")
    assert said(made, "Progressing") == ("False Suspended" if whole == "Suspended" else "True Stopping")
    assert (current.restarts, current.disruptions, current.last_failure) == (0, 0, None)
    assert made.status.start_time is None
    # Else a Job that a late worker makes for it would be taken for the next attempt's.
    assert (current.job_name is None) == (current.phase != "Stopping")


def test_suspension_is_told_when_it_begins_and_when_it_is_done() -> None:
    here = suspended()
    made = look(here)
    assert told(made) == ["Suspending"]
    gone = look(replace(after(here, made), jobs=(), pods=()))
    assert (told(gone), of(gone).phase, of(gone).job_name, of(gone).job_uid) == (["Suspended"], "Suspended", None, None)


@pytest.mark.parametrize("job", [{**ABOUT_TO_FAIL, "deleting": True}, {**FAILED, "deleting": True}, FAILED])
def test_a_stop_that_was_asked_for_is_no_disruption_however_its_job_ends(job: Raw) -> None:
    here = suspended(TWO_NODES, "Stopping", job=job, pods=(STOPPED, STOPPED))
    made = look(here)
    assert (of(made).phase, of(made).last_failure, told(made)) == ("Stopping", None, [])
    assert of(made).checkpoint == Checkpoint(step=7, time=NOW)
    assert acts(made) == ([] if job.get("deleting") else [DELETE])
    further = suspended(phase="Stopping", job=job, pods=(STOPPED,), state={"checkpoint": Checkpoint(step=5)})
    assert of(look(further)).checkpoint == Checkpoint(step=7, time=NOW)
    gone = look(replace(after(here, made), jobs=(), pods=()))
    assert (of(gone).phase, of(gone).disruptions, gone.status.phase) == ("Suspended", 0, "Suspended")


def test_a_crash_while_stopping_is_a_crash() -> None:
    made = look(suspended(phase="Stopping", job={**FAILED, "deleting": True}, pods=(ended(1),)))
    assert (of(made).phase, of(made).restarts, made.status.phase) == ("Suspended", 1, "Suspended")


def test_a_stage_that_is_done_while_it_was_to_stop_is_done() -> None:
    made = look(suspended(phase="Stopping", job=COMPLETE, pods=(ended(0),), then=[CHAT]))
    assert (of(made).phase, of(made, "chat").phase, acts(made)) == ("Succeeded", "Pending", [])
    assert (made.status.phase, made.status.current_stage) == ("Suspended", "chat")


def test_after_a_failure_a_suspended_job_waits_for_its_resume_and_not_for_its_time() -> None:
    state = at(ALIGN, "Suspended", last_failure=failed(), restarts=1, next_attempt_time=in_future(99))
    made = look(world(ALIGN, states=[state]))
    assert (of(made).phase, of(made).attempt, of(made).restarts) == ("Queued", 2, 1)


# Resumed.

RESUMED: dict[str, tuple[StageStatus, list[Action]]] = {
    "a stage in pods": (at(ALIGN, "Suspended", 2), [CreateAttempt("align", 3)]),
    "one that has not begun": (StageStatus(name="align", type="align"), [CreateAttempt("align", 1)]),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resume_begins_the_next_attempt(case: str) -> None:
    state, actions = RESUMED[case]
    made = look(world(ALIGN, states=[state], status={"phase": "Suspended", "start_time": None}))
    assert (acts(made), made.status.phase, made.status.start_time) == (actions, "Queued", NOW)
    assert said(made, "Suspended") == "False NotSuspended"


def test_a_resume_while_the_stage_still_stops_waits_for_its_end() -> None:
    here = at_work(phase="Stopping", job={"deleting": True})
    made = look(here)
    assert (acts(made), of(made).phase, of(made).attempt) == ([], "Stopping", 1)
    gone = look(replace(here, jobs=(), pods=()))
    assert (acts(gone), told(gone)) == ([CreateAttempt("align", 2)], ["Suspended"])
    assert (of(gone).restarts, of(gone).disruptions) == (0, 0)


def test_a_resume_before_the_job_was_deleted_stops_it_all_the_same() -> None:
    """Its pods may be stopping already: only a new attempt is sure to run."""
    assert acts(look(at_work(phase="Stopping"))) == [DELETE]


def test_nodes_and_resources_changed_meanwhile_are_the_next_attempts() -> None:
    wider = stage(parallelism={"nodes": 4}, resources={"limits": {"cpu": 2}}, retry={"limit": 9})
    made = look(world(wider, states=[at(ALIGN, "Suspended")]))
    assert (acts(made), said(made, "Accepted")) == ([CreateAttempt("align", 2)], "True Accepted")


# A deadline.


def test_a_job_is_looked_at_again_when_its_deadline_comes() -> None:
    here = at_work(phase="Queued", activeDeadlineSeconds=100)
    first = look(changed(here, status=here.job.status.to(start_time=None)))
    assert (first.status.start_time, first.wake) == (NOW, in_future(100))
    made = look(after(here, first), in_future(98))
    assert (made.status.phase, of(made).phase, made.wake) == ("Running", "Running", in_future(100))


@pytest.mark.parametrize("phase", ["Queued", "Running", "Stopping"])
def test_a_deadline_ends_what_runs(phase: str) -> None:
    here = at_work(phase=phase, then=[CHAT], activeDeadlineSeconds=100)
    made = look(changed(here, status=here.job.status.to(start_time=ago(100))))
    assert (made.status.phase, of(made).phase, of(made, "chat").phase) == ("Failed", "Failed", "Pending")
    assert (acts(made), told(made), made.status.completion_time) == ([DELETE], ["DeadlineExceeded"], NOW)
    assert said(made, "Failed") == "True DeadlineExceeded"


def test_a_deadline_does_not_count_while_the_job_is_suspended_and_begins_anew_then() -> None:
    resting = world(ALIGN, states=[at(ALIGN, "Suspended")], suspend=True, activeDeadlineSeconds=100)
    made = look(resting)
    assert (made.status.phase, made.status.start_time, made.wake) == ("Suspended", None, None)
    resumed = look(world(ALIGN, states=[of(made)], status={"start_time": None}, activeDeadlineSeconds=100))
    assert (resumed.status.start_time, resumed.wake) == (NOW, in_future(100))


@pytest.mark.parametrize(("limit", "wake"), [(3605, 5), (3699, 9)])
def test_of_a_deadline_and_a_wait_the_earlier_one_wakes(limit: int, wake: int) -> None:
    state = at(ALIGN, "Backoff", next_attempt_time=in_future(9))
    assert look(world(ALIGN, states=[state], activeDeadlineSeconds=limit)).wake == in_future(wake)


def test_a_deadline_fails_a_stage_that_waits_for_its_next_attempt() -> None:
    state = at(ALIGN, "Backoff", next_attempt_time=in_future(60))
    made = look(world(ALIGN, states=[state], activeDeadlineSeconds=100))
    assert (of(made).phase, of(made).next_attempt_time, acts(made)) == ("Failed", None, [])


def test_past_its_deadline_a_promotion_gives_the_traffic_back_before_it_has_failed() -> None:
    canary = Canary(percent=10, uri="pvc://new", previous_uri="pvc://old", since=ago(9))
    states = [at(ALIGN, "Succeeded"), at(PROMOTE, "Running", canary=canary)]
    here = world(ALIGN, PROMOTE, states=states, promotion=PROMOTION, activeDeadlineSeconds=100)
    here = replace(here, serving=Serving("pvc://new", 10, ready=True))
    made = look(here)
    assert (acts(made), of(made, "promote").phase) == ([SetTraffic("pvc://new", 0)], "Stopping")
    assert (made.status.phase, said(made, "Promoted")) == ("Running", "False DeadlineExceeded")
    back = look(replace(after(here, made), serving=Serving("pvc://new", 0, ready=True)))
    assert (back.status.phase, said(back, "Failed")) == ("Failed", "True DeadlineExceeded")


def test_a_job_whose_stages_are_done_has_met_its_deadline() -> None:
    made = look(world(ALIGN, states=[at(ALIGN, "Succeeded")], activeDeadlineSeconds=100))
    assert (made.status.phase, said(made, "Complete"), made.status.completion_time) == (
        "Complete",
        "True Complete",
        NOW,
    )


def test_jobs_of_the_past_are_stopped_by_a_deadline_too() -> None:
    here = at_work(attempt=2, activeDeadlineSeconds=100)
    past = child(at(ALIGN, "Running", 1))
    made = look(replace(here, jobs=(*here.jobs, past)))
    assert {*acts(made)} == {DELETE, DeleteJob(name_of("align", 2), f"uid-of-{name_of('align', 2)}")}
