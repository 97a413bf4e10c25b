"""Ends: a job that is over stays so and goes when its time has come; one that is deleted stops its stages first.

Rows of the failure table: a job that is deleted in the midst of a stage, and that a namespace is never pinned by one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.operator.actions import DeleteJob, DeleteTrainingJob, RemoveFinalizer
from services.operator.status import Status
from services.operator.world import World
from tests.operator_worlds import (
    ALIGN,
    CHAT,
    FAILED,
    NOW,
    Raw,
    acts,
    ago,
    at,
    at_work,
    changed,
    condition,
    in_future,
    look,
    name_of,
    stage,
    world,
)

NAME = name_of("align")
DELETE = DeleteJob(NAME, f"uid-of-{NAME}")


def over(phase: str, *, seconds: float = 60, **spec: object) -> World:
    """A job that has ended so many seconds ago, with one stage that has ended and one that never began."""
    states = [at(ALIGN, "Succeeded" if phase == "Complete" else "Failed")]
    known = {"phase": phase, "completion_time": ago(seconds), "conditions": (condition(phase, "True", phase),)}
    return world(ALIGN, CHAT, states=states, status=known, **spec)


@pytest.mark.parametrize("phase", ["Complete", "Failed"])
@pytest.mark.parametrize(
    "spec", [{}, {"suspend": True}, {"activeDeadlineSeconds": 1}, {"output": {}}, {"stages": [CHAT]}]
)
def test_an_end_is_final_whatever_is_edited_then(phase: str, spec: Raw) -> None:
    here = over(phase, **spec)
    made = look(here)
    assert (made.status, made.actions, made.wake) == (here.job.status, (), None)


@pytest.mark.parametrize("phase", ["Complete", "Failed"])
def test_a_job_that_is_over_still_stops_what_a_late_worker_has_made(phase: str) -> None:
    live, gone = at_work(phase="Queued", job={"suspended": True}), at_work(job={**FAILED})
    assert acts(look(replace(over(phase), jobs=live.jobs))) == [DELETE]
    assert acts(look(replace(over(phase), jobs=gone.jobs))) == []
    assert acts(look(replace(over(phase), jobs=(replace(live.jobs[0], deleting=True),)))) == []


# A time to live.


@pytest.mark.parametrize("phase", ["Complete", "Failed"])
@pytest.mark.parametrize(("seconds", "lives", "deleted"), [(60, 61, False), (60, 60, True), (60, 0, True)])
def test_a_job_is_deleted_when_its_time_to_live_is_over(phase: str, seconds: int, lives: int, deleted: bool) -> None:
    made = look(over(phase, seconds=seconds, ttlSecondsAfterFinished=lives))
    assert acts(made) == ([DeleteTrainingJob()] if deleted else [])
    assert made.wake == (None if deleted else in_future(lives - seconds))


@pytest.mark.parametrize(
    "here",
    [
        at_work(ttlSecondsAfterFinished=0),
        world(ALIGN, states=[at(ALIGN, "Suspended")], suspend=True, ttlSecondsAfterFinished=0),
        world(ALIGN, states=[at(ALIGN, "Succeeded")], ttlSecondsAfterFinished=0),
        changed(at_work(ttlSecondsAfterFinished=0), status=Status(phase="Running", completion_time=ago(9))),
    ],
)
def test_a_time_to_live_counts_from_an_end_and_from_nothing_else(here: World) -> None:
    assert DeleteTrainingJob() not in look(here).actions


def test_a_job_that_is_over_without_a_time_lives_on() -> None:
    here = over("Complete", ttlSecondsAfterFinished=0)
    made = look(changed(here, status=here.job.status.to(completion_time=None)))
    assert (made.actions, made.wake) == ((), None)


# A deletion.


def deleted(here: World, seconds: float) -> World:
    return changed(here, deleting_since=ago(seconds))


def test_a_job_that_is_deleted_first_stops_its_stages() -> None:
    here = deleted(at_work(), 1)
    made = look(here)
    assert (acts(made), made.wake, made.status) == ([DELETE], in_future(5), here.job.status)


def test_a_deleted_job_waits_for_what_is_stopping_and_then_goes() -> None:
    here = deleted(at_work(job={"deleting": True}), 1)
    assert (acts(look(here)), look(here).wake) == ([], in_future(5))
    assert acts(look(replace(here, jobs=()))) == [RemoveFinalizer()]
    assert acts(look(replace(here, jobs=tuple(replace(one, **FAILED) for one in here.jobs)))) == [RemoveFinalizer()]


@pytest.mark.parametrize(("grace", "seconds", "let_go"), [(30, 149, False), (30, 150, True), (600, 700, False)])
def test_what_cannot_be_stopped_in_time_does_not_hold_a_namespace(grace: int, seconds: int, let_go: bool) -> None:
    slow = stage(checkpoint={"graceSeconds": grace})
    made = look(deleted(at_work(slow, job={"deleting": True}, then=[CHAT]), seconds))
    assert acts(made) == ([RemoveFinalizer()] if let_go else [])
    assert made.wake == (None if let_go else in_future(5))


@pytest.mark.parametrize("here", [at_work(), over("Complete"), world(ALIGN, suspend=True)])
def test_a_deleted_job_begins_nothing_and_removes_only_our_finalizer(here: World) -> None:
    alone = replace(deleted(here, 1), jobs=(), pods=())
    assert look(alone).actions == (RemoveFinalizer(),)
    assert look(changed(alone, finalizers=("other",))).actions == ()


def test_deletion_comes_before_a_time_to_live() -> None:
    assert acts(look(deleted(over("Complete", ttlSecondsAfterFinished=0), 1), NOW)) == [RemoveFinalizer()]
