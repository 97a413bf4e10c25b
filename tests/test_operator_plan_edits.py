"""Edits of a spec while the job is under way: what is taken as it comes, and what is refused and said.

The API server's own rules refuse most of it (tests/test_crd.py); here is what happens where its definition lacks them:
the attempt that runs is left alone, nothing is done by halves, and the conditions say which stage it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.operator.actions import BuildShard, CreateAttempt
from services.operator.draft import Plan
from services.operator.status import Artifact, Shard, StageStatus
from services.operator.world import World
from tests.operator_worlds import (
    ALIGN,
    CHAT,
    COMPLETE,
    DATA,
    EVAL,
    FAILED,
    NOW,
    Raw,
    acts,
    ago,
    at,
    at_work,
    changed,
    child,
    condition,
    ended,
    in_future,
    look,
    of,
    pod,
    said,
    stage,
    told,
    training,
    world,
)

EDITED = stage(train={"optimizer": {"steps": 9}})


def message(made: Plan, kind: str = "Accepted") -> str:
    found = made.status.condition(kind)
    return found.message if found else ""


def respecified(here: World, *stages: Raw, **spec: object) -> World:
    """With another spec, and the same status and children."""
    return replace(here, job=training(*stages, status=here.job.status, **spec))


# Refused.


def test_a_claim_that_is_not_named_stops_a_job_before_it_begins_and_nothing_is_lost() -> None:
    here = World(training(ALIGN, output={}))
    made = look(here)
    assert (made.actions, made.status.phase, of(made).phase) == ((), "Pending", "Pending")
    assert (said(made, "Accepted"), said(made, "Progressing")) == ("False NoClaim", "False NoClaim")
    assert "spec.output.pvc is not set" in message(made)
    mended = look(respecified(changed(here, status=made.status), ALIGN))
    assert (acts(mended), said(mended, "Accepted")) == ([CreateAttempt("align", 1)], "True Accepted")


def test_a_job_that_only_promotes_needs_no_claim() -> None:
    promote = stage("promote", type="promote")
    made = look(World(training(promote, output={}, promotion={"inferenceService": "chat"})))
    assert (said(made, "Accepted"), said(made, "Failed")) == ("True Accepted", "True NothingToPromote")


def test_a_stage_of_a_type_that_only_a_newer_operator_knows_waits_for_it() -> None:
    newer = stage("distil", type="distil")
    made = look(at_work(job=COMPLETE, pods=(ended(0),), then=[newer, CHAT]))
    assert (of(made, "distil").phase, of(made, "chat").phase, acts(made)) == ("Pending", "Pending", [])
    assert (said(made, "Accepted"), said(made, "Progressing")) == ("False UnknownType", "False UnknownType")
    assert "does not know the type distil" in message(made)
    assert made.status.phase == "Running"


FIXED = [{"train": {"a": 1}}, {"recipe": "x"}, {"needs": ["data"]}, {"type": "chat"}, {"checkpoint": {"keep": 9}}]
FIXED += [{"parallelism": {"procsPerNode": 2}}, {"gate": {"metric": "x", "atLeast": 1}}]


@pytest.mark.parametrize("edit", FIXED)
def test_an_edit_of_a_stage_that_runs_is_refused_and_its_attempt_left_alone(edit: Raw) -> None:
    made = look(respecified(at_work(), {**ALIGN, **edit}))
    assert (acts(made), of(made).phase, of(made).attempt) == ([], "Running", 1)
    assert (said(made, "Accepted"), said(made, "Progressing")) == ("False ImmutableField", "False ImmutableField")
    assert message(made) == "stage align was changed after it had started: change it back, or make another job"


@pytest.mark.parametrize(
    "edit", [{"retry": {"limit": 9}}, {"resources": {"limits": {}}}, {"parallelism": {"nodes": 4}}]
)
def test_an_edit_of_retry_nodes_or_resources_is_taken(edit: Raw) -> None:
    made = look(respecified(at_work(), {**ALIGN, **edit}))
    assert (acts(made), of(made).phase, said(made, "Accepted")) == ([], "Running", "True Accepted")


@pytest.mark.parametrize("pods", [(), ({"phase": "Pending"},), ({},)])
def test_a_refusal_keeps_the_time_at_which_it_was_first_said(pods: Sequence[Raw]) -> None:
    old = (condition("Accepted", "False", "ImmutableField"), condition("Progressing", "False", "ImmutableField"))
    here = at_work(phase="Queued", pods=pods)
    made = look(respecified(changed(here, status=here.job.status.to(conditions=old)), EDITED))
    times = {one.type: one.last_transition_time for one in made.status.conditions}
    assert (times["Accepted"], times["Progressing"]) == (ago(3600), ago(3600))


BETWEEN: dict[str, World] = {
    "after a failure": world(EDITED, states=[at(ALIGN, "Backoff", next_attempt_time=ago(1))]),
    "after a suspension": world(EDITED, states=[at(ALIGN, "Suspended")]),
    "before its Job was made": respecified(at_work(phase="Queued", state={"job_uid": None}, job=None, pods=()), EDITED),
    "as its attempt fails": respecified(at_work(job=FAILED, pods=(ended(75),)), EDITED),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_no_attempt_begins_with_an_edited_stage(case: str) -> None:
    made = look(BETWEEN[case])
    assert (acts(made), of(made).attempt) == ([], 1)
    assert (of(made).phase, of(made).next_attempt_time) == {
        "after a failure": ("Backoff", ago(1)),
        "after a suspension": ("Suspended", None),
        "before its Job was made": ("Queued", None),
        "as its attempt fails": ("Backoff", NOW),
    }[case]
    assert (said(made, "Accepted"), said(made, "Progressing")) == ("False ImmutableField", "False ImmutableField")


def test_a_stage_that_is_changed_back_goes_on() -> None:
    made = look(BETWEEN["after a suspension"])
    mended = look(respecified(changed(BETWEEN["after a suspension"], status=made.status), ALIGN))
    assert (acts(mended), said(mended, "Accepted")) == ([CreateAttempt("align", 2)], "True Accepted")
    assert said(mended, "Progressing") == "True Queued"


def test_fewer_pieces_do_not_make_half_the_data_a_whole() -> None:
    state = at(DATA, "Running", shards=(Shard(number=0, digest="a"), Shard(number=1, digest="b")))
    made = look(world({**DATA, "shards": 2}, states=[state]))
    assert (of(made, "data").phase, acts(made), said(made, "Accepted")) == ("Running", [], "False ImmutableField")
    whole = look(world(DATA, states=[state]))
    assert acts(whole) == [BuildShard("data", 1, 2)]


def running(*stages: Raw) -> World:
    """A spec that has `align`, which runs, in another place or not at all."""
    state = at(ALIGN, "Running")
    return replace(world(*stages, states=[state]), jobs=(child(state),), pods=(pod(state),))


@pytest.mark.parametrize("stages", [[CHAT], [CHAT, ALIGN], [EVAL, ALIGN, CHAT]])
def test_nothing_begins_beside_a_stage_that_runs_and_was_removed_or_moved(stages: list[Raw]) -> None:
    made = look(running(*stages))
    assert (acts(made), of(made).phase, of(made, "chat").phase) == ([], "Running", "Pending")
    assert (said(made, "Accepted"), said(made, "Progressing")) == ("False ImmutableField", "False ImmutableField")
    assert "stage align was changed" in message(made)


def test_a_stage_that_was_removed_when_it_was_done_stays_in_the_story() -> None:
    made = look(world(CHAT, states=[at(ALIGN, "Succeeded")]))
    assert [one.name for one in made.status.stages] == ["align", "chat"]
    assert (acts(made), said(made, "Accepted")) == ([CreateAttempt("chat", 1)], "False ImmutableField")


# Taken.


def test_a_pending_stage_may_be_edited_added_or_removed() -> None:
    here = at_work(then=[CHAT])
    here = changed(here, status=look(here).status)
    other = stage("chat", type="eval")
    edited, added = look(respecified(here, ALIGN, other)), look(respecified(here, ALIGN, CHAT, EVAL))
    removed = look(respecified(here, ALIGN))
    assert of(edited, "chat") == StageStatus(name="chat", type="eval")
    assert [one.name for one in added.status.stages] == ["align", "chat", "test"]
    assert [one.name for one in removed.status.stages] == ["align"]
    assert {said(made, "Accepted") for made in (edited, added, removed)} == {"True Accepted"}


PROMOTE = stage("promote", type="promote")


@pytest.mark.parametrize("raw", [ALIGN, DATA, PROMOTE])
def test_a_stage_is_remembered_as_it_was_when_its_attempt_began(raw: Raw) -> None:
    done, name = at(CHAT, "Succeeded", artifact=Artifact(uri="pvc://new")), raw["name"]
    spec = {"promotion": {"inferenceService": "x"}}
    made = look(world(CHAT, raw, states=[done], **spec))
    same = look(world(CHAT, raw, states=[done, of(made, name)], **spec))
    again = look(world(CHAT, {**raw, "train": {"a": 1}}, states=[done, of(made, name)], **spec))
    assert (said(same, "Accepted"), said(again, "Accepted")) == ("True Accepted", "False ImmutableField")


def test_a_retry_limit_that_was_raised_counts_at_once() -> None:
    patient = {**ALIGN, "retry": {"limit": 4}}
    here = at_work(job=FAILED, pods=(ended(1),), state={"restarts": 3})
    assert look(here).status.phase == "Failed"
    assert of(look(respecified(here, patient))).phase == "Backoff"


@pytest.mark.parametrize("edit", [{"ttlSecondsAfterFinished": 9}, {"promotion": {"inferenceService": "x"}}])
def test_what_is_about_the_whole_job_is_taken_while_it_runs(edit: Raw) -> None:
    made = look(respecified(at_work(), ALIGN, **edit))
    assert (acts(made), told(made), said(made, "Accepted")) == ([], [], "True Accepted")


def test_a_deadline_that_was_raised_counts_from_the_same_start() -> None:
    here = at_work()
    assert look(respecified(here, ALIGN, activeDeadlineSeconds=3600)).status.phase == "Failed"
    assert look(respecified(here, ALIGN, activeDeadlineSeconds=3700)).wake == in_future(100)


def test_the_generation_that_was_looked_at_is_written_down() -> None:
    made = look(changed(at_work(), generation=7))
    assert made.status.observed_generation == 7
    assert {one.observed_generation for one in made.status.conditions} == {7}
    assert {one.last_transition_time for one in made.status.conditions} == {NOW}
