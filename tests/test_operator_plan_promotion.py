"""A promotion: traffic rises step by step while the new model is ready and good enough, and goes back if it is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from services.operator.actions import Action, SetTraffic
from services.operator.status import Artifact, Canary, StageStatus
from services.operator.world import Serving, World
from tests.operator_worlds import (
    ALIGN,
    CHAT,
    EVAL,
    MERGE,
    NOW,
    Raw,
    acts,
    after,
    ago,
    at,
    changed,
    in_future,
    look,
    of,
    said,
    stage,
    told,
    warned,
    world,
)

PROMOTE = stage("promote", type="promote")
NEW, OLD, ANOTHER = "pvc://results/job-uid1/align/model", "pvc://results/before/model", "pvc://else/model"
GATE = {"prometheus": "http://prometheus", "query": "good", "atLeast": 0.9}
TRAINED = at(ALIGN, "Succeeded", artifact=Artifact(uri=NEW))


def spec(**fields: Any) -> Raw:
    return {"promotion": {"inferenceService": "chat", **fields}}


def serving(percent: int | None, *, uri: str | None = NEW, ready: bool = True) -> Serving:
    return Serving(uri, percent, ready, "no node has room")


def begun(percent: int, since: datetime | None = None, start: datetime = NOW, **canary: Any) -> StageStatus:
    known = Canary(**{"percent": percent, "uri": NEW, "since": since, "previous_uri": OLD, **canary})
    return at(PROMOTE, "Running", start_time=start, canary=known)


def promoting(state: StageStatus, found: Serving | None, measured: float | None = None, **more: Any) -> World:
    whole = world(ALIGN, PROMOTE, states=[TRAINED, state], **{**spec(), **more})
    return replace(whole, serving=found, measured=measured)


# The beginning.


@pytest.mark.parametrize(
    ("found", "steps", "percent", "previous"),
    [
        (None, [10, 100], 100, None),
        (serving(None, uri=None), [10, 100], 100, None),
        (serving(100, uri=OLD), [10, 100], 10, OLD),
        (serving(100, uri=OLD), [100], 100, OLD),
    ],
)
def test_a_first_model_gets_all_the_traffic_and_a_later_one_the_first_step(
    found: Serving | None, steps: list[int], percent: int, previous: str | None
) -> None:
    here = replace(world(ALIGN, PROMOTE, states=[TRAINED], **spec(steps=steps)), serving=found)
    made = look(here)
    assert (acts(made), told(made)) == ([SetTraffic(NEW, percent)], ["Promoting"])
    state = of(made, "promote")
    assert state.canary == Canary(percent=percent, uri=NEW, previous_uri=previous)
    assert (state.phase, state.attempt, state.start_time) == ("Running", 1, NOW)
    assert (made.status.phase, made.status.current_stage) == ("Running", "promote")
    assert made.status.display is not None
    assert made.status.display.step == f"{percent}%"


def left(raw: Raw) -> StageStatus:
    return at(raw, "Succeeded", artifact=None if raw["type"] in ("eval", "merge") else Artifact(uri=raw["name"]))


@pytest.mark.parametrize(
    ("needs", "model"), [([], "chat"), (["align"], "align"), (["align", "chat"], "chat"), (["test"], "chat")]
)
def test_the_model_is_that_of_the_last_stage_that_trains_among_those_it_needs(needs: list[str], model: str) -> None:
    before = (ALIGN, CHAT, EVAL, MERGE)
    made = look(world(*before, {**PROMOTE, "needs": needs}, states=[left(raw) for raw in before], **spec()))
    assert acts(made) == [SetTraffic(model, 100)]


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (world(ALIGN, PROMOTE, states=[TRAINED]), "NoPromotion"),
        (world(PROMOTE, **spec()), "NothingToPromote"),
        (world(EVAL, PROMOTE, states=[left(EVAL)], **spec()), "NothingToPromote"),
        (world(ALIGN, PROMOTE, states=[at(ALIGN, "Succeeded")], **spec()), "NothingToPromote"),
    ],
)
def test_where_there_is_nothing_to_promote_or_nowhere_the_job_fails(here: World, reason: str) -> None:
    made = look(here)
    assert (said(made, "Failed"), acts(made), told(made)) == (f"True {reason}", [], [reason])
    assert (of(made, "promote").attempt, made.status.phase) == (1, "Failed")


# Step by step: the stage and what is served; what is done, the percentage then, and since when it counts.

READY, STEP_OVER = ago(299), ago(300)
STEPS: dict[str, tuple[StageStatus, Serving | None, list[Action], int, datetime | None]] = {
    "the InferenceService was not told yet": (
        begun(10),
        serving(100, uri=OLD),
        [SetTraffic(NEW, 10)],
        10,
        None,
    ),
    "it is gone": (begun(10), None, [SetTraffic(NEW, 10)], 10, None),
    "somebody has changed its traffic": (begun(10, READY), serving(50), [SetTraffic(NEW, 10)], 10, READY),
    "somebody has changed its model": (begun(10, READY), serving(10, uri=ANOTHER), [SetTraffic(NEW, 10)], 10, READY),
    "it is not ready yet": (begun(10, start=ago(599)), serving(10, ready=False), [], 10, None),
    "it has become ready": (begun(10, start=ago(599)), serving(10), [], 10, NOW),
    "its step is not over": (begun(10, READY), serving(10), [], 10, READY),
    "its step is over": (begun(10, STEP_OVER), serving(10), [SetTraffic(NEW, 50)], 50, None),
    "its next step is over": (begun(50, STEP_OVER), serving(50), [SetTraffic(NEW, 100)], 100, None),
    "it has stopped being ready": (begun(10, STEP_OVER), serving(10, ready=False), [], 10, None),
}


def state_percent(state: StageStatus) -> int:
    assert state.canary is not None
    return state.canary.percent


@pytest.mark.parametrize("case", STEPS)
def test_traffic_rises_when_the_model_has_been_ready_for_a_whole_step(case: str) -> None:
    state, found, actions, percent, since = STEPS[case]
    # A second later a step may be over that is not over now.
    moment = ago(1) if since == READY else NOW
    made = look(promoting(state, found), moment)
    canary = of(made, "promote").canary
    assert canary is not None
    assert (acts(made), canary.percent, canary.since) == (actions, percent, since)
    assert told(made) == (["Promoting"] if percent > state_percent(state) else [])
    assert (made.status.phase, of(made, "promote").phase) == ("Running", "Running")
    assert said(made, "Progressing") == "True Running"


def test_at_all_of_the_traffic_the_promotion_is_done() -> None:
    made = look(promoting(begun(100, STEP_OVER), serving(100)))
    assert (of(made, "promote").phase, made.status.phase, acts(made)) == ("Succeeded", "Complete", [])
    assert (said(made, "Promoted"), told(made)) == ("True Promoted", ["Promoted", "Complete"])
    assert of(made, "promote").completion_time == NOW


def test_a_step_that_is_under_way_is_looked_at_again() -> None:
    assert look(promoting(begun(10, NOW), serving(10))).wake == in_future(15)


def test_the_time_to_become_ready_counts_anew_at_every_step() -> None:
    state = of(look(promoting(begun(10, STEP_OVER, start=ago(900)), serving(10))), "promote")
    made = look(promoting(state, serving(50, ready=False)), in_future(599))
    assert (state.start_time, of(made, "promote").phase) == (NOW, "Running")


# Not good enough.

GATED = spec(gate=GATE)


@pytest.mark.parametrize(("measured", "gated"), [(0.9, GATED), (1.0, GATED), (0.0, spec())])
def test_a_good_value_lets_traffic_rise_and_any_where_none_is_asked_for(measured: float, gated: Raw) -> None:
    made = look(promoting(begun(10, STEP_OVER), serving(10), measured, **gated))
    assert acts(made) == [SetTraffic(NEW, 50)]


def test_without_a_value_traffic_stays_and_goes_on_when_there_is_one() -> None:
    here = promoting(begun(10, STEP_OVER), serving(10), **GATED)
    made = look(here)
    assert (acts(made), made.status.phase, said(made, "Progressing")) == ([], "Running", "Unknown GateUnknown")
    assert of(made, "promote").canary == begun(10, STEP_OVER).canary
    answered = look(replace(after(here, made), measured=0.95))
    assert (acts(answered), said(answered, "Progressing")) == ([SetTraffic(NEW, 50)], "True Running")


def test_without_a_value_a_step_that_is_not_over_says_nothing_of_it() -> None:
    assert said(look(promoting(begun(10, NOW), serving(10), **GATED)), "Progressing") == "True Running"


BAD: dict[str, tuple[World, str, str]] = {
    "below the gate": (
        promoting(begun(10, NOW), serving(10), 0.89, **GATED),
        "GateFailed",
        "good is 0.89 at 10 %, it must be at least 0.9",
    ),
    "below the gate at the first look": (
        promoting(begun(50), serving(50), 0.0, **GATED),
        "GateFailed",
        "good is 0 at 50 %, it must be at least 0.9",
    ),
    "not ready in time": (
        promoting(begun(10, start=ago(601)), serving(10, ready=False), 1.0, **GATED),
        "NotReady",
        "not ready after 600 s: no node has room",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_model_that_is_not_good_gives_all_traffic_back_and_then_the_job_has_failed(case: str) -> None:
    here, reason, message = BAD[case]
    made = look(here)
    assert (acts(made), told(made), said(made, "Promoted")) == ([SetTraffic(NEW, 0)], [reason], f"False {reason}")
    assert (of(made, "promote").phase, made.status.phase) == ("Stopping", "Running")
    assert (warned(made), state_percent(of(made, "promote"))) == ([reason], 0)
    told_so = look(replace(after(here, made), serving=serving(0, ready=False), measured=1.0))
    assert (acts(told_so), told_so.status.phase, said(told_so, "Failed")) == ([], "Failed", f"True {reason}")
    failure = told_so.status.condition("Failed")
    assert failure is not None
    assert failure.message == f"stage promote: {message}"


def test_a_model_that_was_ready_once_has_the_whole_time_to_become_so_again() -> None:
    first = promoting(begun(10, ago(200), start=ago(900)), serving(10, ready=False))
    made = look(first)
    assert (of(made, "promote").phase, acts(made)) == ("Running", [])
    later = look(after(first, made), in_future(599))
    assert of(later, "promote").phase == "Running"
    assert of(look(after(first, made), in_future(601)), "promote").phase == "Stopping"


@pytest.mark.parametrize("case", BAD)
def test_the_first_model_of_all_has_nothing_to_go_back_to_and_stays(case: str) -> None:
    here, reason, _ = BAD[case]
    state = here.job.status.stages[1]
    assert state.canary is not None
    alone = state.to(canary=state.canary.model_copy(update={"previous_uri": None}))
    made = look(changed(here, status=here.job.status.to(stages=(TRAINED, alone))))
    assert (acts(made), made.status.phase, said(made, "Failed")) == ([], "Failed", f"True {reason}")
    assert (said(made, "Promoted"), told(made)) == (f"False {reason}", [reason])
    assert of(made, "promote").canary == alone.canary


@pytest.mark.parametrize(("found", "phase"), [(serving(10), "Running"), (serving(0), "Failed"), (None, "Failed")])
def test_the_way_back_is_asked_for_until_it_is_gone(found: Serving | None, phase: str) -> None:
    here = promoting(begun(0).to(phase="Stopping"), found)
    made = look(here)
    assert made.status.phase == phase
    assert acts(made) == ([SetTraffic(NEW, 0)] if phase == "Running" else [])
    assert made.wake == (in_future(15) if phase == "Running" else None)


# Suspended.


def test_a_suspended_promotion_leaves_traffic_as_it_is_and_begins_its_step_anew() -> None:
    made = look(promoting(begun(10, STEP_OVER), serving(10), suspend=True))
    assert (acts(made), made.status.phase, of(made, "promote").phase) == ([], "Suspended", "Suspended")
    for ready, since in ((True, NOW), (False, None)):
        resumed = look(promoting(of(made, "promote"), serving(10, ready=ready)))
        canary = of(resumed, "promote").canary
        assert canary is not None
        assert (of(resumed, "promote").phase, canary.percent, canary.since) == ("Running", 10, since)
        assert (acts(resumed), of(resumed, "promote").start_time) == ([], NOW)


def test_the_way_back_is_not_held_up_by_a_suspension() -> None:
    made = look(promoting(begun(0).to(phase="Stopping"), serving(10), suspend=True))
    assert acts(made) == [SetTraffic(NEW, 0)]
