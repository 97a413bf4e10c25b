"""What people see of a job: kubectl's columns, a trainer that has fallen silent, and what the API would not do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.operator.actions import CreateAttempt, SetTraffic
from services.operator.conditions import with_condition
from services.operator.showing import duration
from services.operator.status import Canary, Display, Progress, Status
from services.operator.world import Serving, World
from tests.operator_worlds import (
    ALIGN,
    CHAT,
    EVAL,
    NOW,
    acts,
    after,
    ago,
    at,
    at_work,
    changed,
    condition,
    ended,
    failed,
    in_future,
    look,
    of,
    said,
    stage,
    told,
    warned,
    world,
)


def progress(seconds_ago: float = 5, **fields: Any) -> Progress:
    known = {"attempt": 1, "step": 1200, "total": 5000, "loss": 2.34567, "eta_seconds": 3800}
    return Progress(**{**known, "updated_at": ago(seconds_ago), **fields})


@pytest.mark.parametrize(
    ("here", "columns"),
    [
        (at_work(state={"progress": progress()}), Display(step="1200/5000", loss="2.346", eta="1h3m", attempt="1")),
        (at_work(), Display(attempt="1")),
        (world(ALIGN, suspend=True), Display()),
        (at_work(state={"progress": progress(loss=None, eta_seconds=None)}), Display(step="1200/5000", attempt="1")),
        (
            at_work(phase="Stopping", state={"progress": progress()}, job={"deleting": True}),
            Display(step="1200/5000", loss="2.346", attempt="1"),
        ),
        (
            world(ALIGN, states=[at(ALIGN, "Succeeded", progress=progress(step=5000))]),
            Display(step="5000/5000", loss="2.346", attempt="1"),
        ),
    ],
)
def test_the_columns_are_those_of_the_current_stage(here: World, columns: Display) -> None:
    assert look(here).status.display == columns


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h0m"),
        (5400, "1h30m"),
        (86399, "23h59m"),
        (86400, "1d0h"),
        (172800, "2d0h"),
        (187200, "2d4h"),
    ],
)
def test_a_duration_is_written_as_kubectl_writes_ages(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_new_attempt_has_no_progress_yet_and_keeps_the_failure_before() -> None:
    state = at(ALIGN, "Backoff", next_attempt_time=ago(1), last_failure=failed(), progress=progress())
    made = look(world(ALIGN, states=[state]))
    assert (of(made).progress, of(made).last_failure, of(made).attempt) == (None, failed(), 2)
    assert made.status.display == Display(attempt="2")


# A trainer that has fallen silent.


@pytest.mark.parametrize(
    ("told_of", "progressing"),
    [
        (progress(85), "True Running"),
        (progress(91), "Unknown Stalled"),
        (progress(240, eta_seconds=3800 * 90), "True Running"),
        (progress(271, eta_seconds=3800 * 90), "Unknown Stalled"),
        (progress(91, eta_seconds=None), "Unknown Stalled"),
        (progress(91, step=5000, eta_seconds=0), "Unknown Stalled"),
        (progress(290, step=4999, eta_seconds=100), "True Running"),
        (progress(updated_at=None), "True Running"),
        (None, "True Running"),
    ],
)
def test_a_trainer_is_silent_after_three_steps_and_a_minute_and_a_half(
    told_of: Progress | None, progressing: str
) -> None:
    made = look(at_work(state={"progress": told_of}))
    assert (said(made, "Progressing"), acts(made), of(made).phase) == (progressing, [], "Running")
    assert told(made) == warned(made) == (["Stalled"] if progressing == "Unknown Stalled" else [])


def test_silence_ends_with_the_next_word() -> None:
    silent = at_work(state={"progress": progress(91)})
    made = look(silent)
    spoken = at_work(state={"progress": progress(1)})
    again = look(changed(spoken, status=made.status.to(stages=spoken.job.status.stages)))
    assert said(again, "Progressing") == "True Running"


def test_only_a_stage_that_runs_can_be_silent() -> None:
    silent = {"progress": progress(999)}
    stopping = look(at_work(phase="Stopping", job={"deleting": True}, state=silent))
    held = look(at_work(phase="Queued", job={"suspended": True}, pods=(), state=silent))
    assert (said(stopping, "Progressing"), said(held, "Progressing")) == ("True Stopping", "True Queued")


# What the API would not do (services/operator/apply.py writes it down and the next look tries again).


def refused(here: World, action: str) -> World:
    conditions = (condition("Progressing", "False", f"{action}Refused"),)
    return changed(here, status=here.job.status.to(conditions=conditions))


PROMOTE = stage("promote", type="promote")
CANARY = at(PROMOTE, "Running", canary=Canary(percent=10, uri="pvc://new", previous_uri="pvc://old"))
PROMOTING = world(ALIGN, PROMOTE, states=[at(ALIGN, "Succeeded"), CANARY], promotion={"inferenceService": "chat"})
BACK = PROMOTING.job.status.to(stages=(at(ALIGN, "Succeeded"), CANARY.to(phase="Stopping")))


@pytest.mark.parametrize(
    ("here", "action"),
    [
        (at_work(phase="Queued", state={"job_uid": None}, job=None, pods=()), CreateAttempt("align", 1)),
        (PROMOTING, SetTraffic("pvc://new", 10)),
        (
            replace(changed(PROMOTING, status=BACK), serving=Serving("pvc://new", 10, ready=True)),
            SetTraffic("pvc://new", 0),
        ),
    ],
)
def test_what_the_api_refuses_is_tried_again_and_said_until_it_is_done(
    here: World, action: CreateAttempt | SetTraffic
) -> None:
    name = type(action).__name__
    made = look(refused(here, name))
    assert (acts(made), said(made, "Progressing")) == ([action], f"False {name}Refused")


@pytest.mark.parametrize(
    ("here", "action", "progressing"),
    [
        (at_work(phase="Queued", job={"suspended": True}, pods=()), "CreateAttempt", "True Queued"),
        (at_work(), "CreateAttempt", "True Running"),
        (replace(PROMOTING, serving=Serving("pvc://new", 10, ready=True)), "SetTraffic", "True Running"),
        (world(ALIGN, states=[at(ALIGN, "Backoff", next_attempt_time=in_future(9))]), "SetTraffic", "True Backoff"),
    ],
)
def test_a_refusal_is_forgotten_when_it_is_done(here: World, action: str, progressing: str) -> None:
    assert said(look(refused(here, action)), "Progressing") == progressing


# Times of conditions.


def test_a_condition_keeps_its_time_until_it_changes_between_true_false_and_unknown() -> None:
    old = at_work(state={"progress": progress()})
    conditions = (condition("Progressing", "True", "Queued"), condition("Suspended", "True", "Suspended"))
    made = look(changed(old, status=old.job.status.to(conditions=conditions)))
    progressing, suspended = made.status.condition("Progressing"), made.status.condition("Suspended")
    assert progressing is not None
    assert suspended is not None
    assert (progressing.reason, progressing.last_transition_time) == ("Running", ago(3600))
    assert (suspended.status, suspended.last_transition_time) == ("False", NOW)


def test_a_condition_is_compared_with_the_one_that_is_there_if_with_no_other() -> None:
    """So do those who write one without a plan (services/operator/apply.py, resync.py)."""
    before = Status(conditions=(condition("Progressing", "False", "Backoff"),))
    same = with_condition(before, "Progressing", False, "X", "m" * 3000, generation=2, now=NOW).condition("Progressing")
    other = with_condition(before, "Progressing", None, "X", generation=2, now=NOW).condition("Progressing")
    assert same is not None
    assert other is not None
    assert (same.last_transition_time, other.last_transition_time) == (ago(3600), NOW)
    assert (same.reason, same.message, same.observed_generation) == ("X", "m" * 2048, 2)


def test_conditions_of_others_are_left_alone() -> None:
    other = condition("Audited", "True", "Seen")
    made = look(changed(at_work(), status=at_work().job.status.to(conditions=(other,))))
    assert made.status.condition("Audited") == other


def test_the_story_of_a_whole_job_is_told_once() -> None:
    """Every Event from beginning to end, in order; a second look tells nothing (`look`)."""
    here = world(ALIGN, CHAT, EVAL)
    events: list[str] = []
    for raw in (ALIGN, CHAT, EVAL):
        begun = look(here)
        running = at_work(raw)
        state = of(begun, raw["name"]).to(job_uid=running.jobs[0].uid)
        runs = look(replace(running, job=changed_to(here, begun.status, state)))
        over = replace(running, job=changed_to(here, runs.status, of(runs, raw["name"])))
        done = look(
            replace(
                over,
                jobs=(replace(over.jobs[0], conditions=(("Complete", ""),), active=0),),
                pods=(replace(over.pods[0], **ended(0)),),
            )
        )
        events += told(begun) + told(runs) + told(done)
        here = after(here, done)
    assert events == ["Started", "StageComplete"] * 3 + ["Complete"]


def changed_to(here: World, status: Status, state: Any) -> Any:
    """The TrainingJob with that status, and one of its stages as it is by now."""
    stages = tuple(state if one.name == state.name else one for one in status.stages)
    return changed(here, status=status.to(stages=stages)).job
