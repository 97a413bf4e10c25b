"""A stage of type data: its pieces are asked for until they are there, tried again, suspended, and counted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from services.operator.actions import Action, BuildShard, CreateAttempt
from services.operator.status import Artifact, Failure, Shard
from services.operator.world import World
from tests.operator_worlds import (
    ALIGN,
    DATA,
    NOW,
    Raw,
    acts,
    ago,
    at,
    failed,
    in_future,
    look,
    of,
    said,
    told,
    training,
    world,
)


def built(*numbers: int) -> tuple[Shard, ...]:
    return tuple(Shard(number=number, digest=f"sha256:{number}") for number in numbers)


def pieces(*numbers: int, attempt: int = 1) -> list[Action]:
    return [BuildShard("data", attempt, number) for number in numbers]


def building(*numbers: int, phase: str = "Running", raw: Raw = DATA, suspend: bool = False, **fields: Any) -> World:
    """With those pieces there, and a stage after it."""
    return world(raw, ALIGN, states=[at(raw, phase, shards=built(*numbers), **fields)], suspend=suspend)


def test_a_data_stage_asks_for_all_of_its_pieces_and_makes_no_job() -> None:
    made = look(World(training(DATA, ALIGN)))
    state = of(made, "data")
    assert (acts(made), told(made)) == (pieces(0, 1, 2), ["Started"])
    assert (state.phase, state.attempt, state.job_name, state.start_time) == ("Running", 1, None, NOW)
    assert (made.status.phase, said(made, "Progressing"), of(made).phase) == ("Running", "True Running", "Pending")


@pytest.mark.parametrize(("there", "missing"), [((), (0, 1, 2)), ((1,), (0, 2)), ((2, 0), (1,))])
def test_pieces_that_are_missing_are_asked_for_at_every_look(there: tuple[int, ...], missing: tuple[int, ...]) -> None:
    """Redis may have lost all of them; which ones are there is known from the status alone."""
    made = look(building(*there))
    assert (acts(made), told(made), of(made, "data").attempt) == (pieces(*missing), [], 1)
    display = made.status.display
    assert display is not None
    assert (display.step, display.attempt) == (f"{len(there)} pieces", "1")


def test_the_stage_is_done_when_its_last_piece_is_there() -> None:
    made = look(building(2, 0, 1))
    assert (of(made, "data").phase, of(made, "data").completion_time) == ("Succeeded", NOW)
    assert of(made, "data").artifact == Artifact(uri="pvc://results/job-uid1/data")
    assert (acts(made), told(made)) == ([CreateAttempt("align", 1)], ["StageComplete"])


def broken(reason: str = "Crashed") -> Failure:
    return failed(reason=reason, message="piece 1: no picture")


def test_a_piece_that_fails_is_tried_again_later_and_the_others_are_kept() -> None:
    made = look(building(0, last_failure=broken()))
    state = of(made, "data")
    assert (state.phase, state.restarts, state.disruptions, state.shards) == ("Backoff", 1, 0, built(0))
    assert (acts(made), told(made)) == ([], ["Restarting"])
    assert state.next_attempt_time is not None
    assert in_future(8) <= state.next_attempt_time <= in_future(10)
    assert made.wake == state.next_attempt_time
    again = look(world(DATA, ALIGN, states=[state]), in_future(10))
    assert (acts(again), of(again, "data").attempt) == (pieces(1, 2, attempt=2), 2)
    assert (of(again, "data").restarts, of(again, "data").next_attempt_time) == (1, None)


def test_a_wait_that_is_not_over_asks_for_nothing() -> None:
    made = look(building(0, phase="Backoff", next_attempt_time=in_future(5)))
    assert (acts(made), made.wake, said(made, "Progressing")) == ([], in_future(5), "True Backoff")


@pytest.mark.parametrize(("phase", "at_time"), [("Backoff", NOW), ("Backoff", None), ("Suspended", in_future(5))])
def test_a_wait_that_is_over_or_was_broken_off_asks_for_what_is_missing(phase: str, at_time: datetime | None) -> None:
    made = look(building(0, phase=phase, next_attempt_time=at_time))
    assert (acts(made), of(made, "data").next_attempt_time) == (pieces(1, 2, attempt=2), None)


@pytest.mark.parametrize(
    ("failure", "restarts", "retry", "reason"),
    [
        (broken("Rejected"), 0, {}, "Rejected"),
        (broken(), 3, {}, "TooManyRestarts"),
        (broken(), 0, {"limit": 0}, "TooManyRestarts"),
        (broken(), 2, {}, ""),
        (failed(attempt=0), 3, {}, ""),
    ],
)
def test_wrong_data_and_too_many_failures_end_the_job(failure: Failure, restarts: int, retry: Raw, reason: str) -> None:
    made = look(building(0, raw={**DATA, "retry": retry}, last_failure=failure, restarts=restarts))
    assert said(made, "Failed") == (f"True {reason}" if reason else "")
    assert (made.status.phase == "Failed") == bool(reason)
    assert of(made).phase == "Pending"


def test_a_suspended_data_stage_asks_for_nothing_and_keeps_what_is_there() -> None:
    made = look(building(0, 2, suspend=True))
    assert (acts(made), made.status.phase, of(made, "data").phase) == ([], "Suspended", "Suspended")
    resumed = look(world(DATA, ALIGN, states=[of(made, "data")]))
    assert (acts(resumed), of(resumed, "data").shards) == (pieces(1, attempt=2), built(0, 2))
    assert (of(resumed, "data").restarts, of(resumed, "data").start_time) == (0, ago(60))


def test_a_suspended_data_stage_that_has_not_begun_stays_so() -> None:
    made = look(World(training(DATA, suspend=True)))
    assert (made.status.phase, of(made, "data").phase, acts(made)) == ("Suspended", "Pending", [])


def test_the_last_piece_of_a_suspended_stage_ends_it_and_begins_nothing() -> None:
    made = look(building(0, 1, 2, phase="Suspended", suspend=True))
    assert (of(made, "data").phase, of(made).phase, acts(made)) == ("Succeeded", "Pending", [])
    assert (made.status.phase, made.status.current_stage) == ("Suspended", "align")


def test_a_failure_that_comes_as_the_job_is_suspended_is_counted() -> None:
    made = look(building(0, last_failure=broken(), suspend=True))
    assert (of(made, "data").phase, of(made, "data").restarts, acts(made)) == ("Suspended", 1, [])
