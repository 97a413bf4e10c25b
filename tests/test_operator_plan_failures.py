"""What follows from an attempt that has ended badly: who is to blame, which budget it costs, and when the next begins.

Rows of the failure table: a pod that is evicted or drained, with and without time to save; a rank that crashes, and one
that crashes twice at the same step. test_operator_plan_nodes.py goes on with what nobody has said a word about.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from services.operator.actions import CreateAttempt
from services.operator.outcome import backoff
from services.operator.resource import Backoff
from services.operator.status import Checkpoint
from services.operator.world import World
from tests.operator_worlds import (
    ABOUT_TO_FAIL,
    ALIGN,
    CHAT,
    FAILED,
    NOW,
    TWO_NODES,
    Raw,
    acts,
    ago,
    at_work,
    ended,
    failed,
    in_future,
    look,
    name_of,
    of,
    said,
    stage,
    told,
    warned,
    world,
)

NAME = name_of("align")
UID = f"uid-of-{NAME}"
STOPPED = '{"code":75,"error":"Stopped","reason":"stopped after step 7","step":7}'
CRASH = '{"code":1,"error":"RuntimeError","reason":"CUDA error","step":7}'
WRONG = '{"code":42,"error":"BadData","reason":"a picture is cut off","step":7}'
EVICTED: Raw = {"disrupted": "evicted by the API"}


def failing(*pods: Raw, raw: Raw = ALIGN, **more: Any) -> World:
    """The Job has failed, and these are its pods, which have all ended."""
    return at_work(raw, job=FAILED, pods=pods, **more)


# Who is to blame.

VERDICTS: dict[str, tuple[list[Raw], str, str]] = {
    "a pod is evicted and saves in time": ([ended(75, STOPPED, **EVICTED)], "Disrupted", "stopped after step 7"),
    "a pod is evicted and its grace is too short": ([ended(137, **EVICTED)], "Disrupted", "evicted by the API"),
    "a pod is deleted by hand and saves": ([ended(75, STOPPED)], "Disrupted", "stopped after step 7"),
    "a rank crashes": ([ended(1, CRASH)], "Crashed", "CUDA error"),
    "a rank is killed for its memory": ([ended(137)], "Crashed", "killed by signal 9 without a word"),
    "a rank ends without a word": ([ended(3)], "Crashed", "ended with code 3 and without a word"),
    "a code that is no signal": ([ended(128)], "Crashed", "ended with code 128 and without a word"),
    "the first signal of all": ([ended(129)], "Crashed", "killed by signal 1 without a word"),
    "a rank gives no reason": ([ended(1, '{"code":1,"reason":""}')], "Crashed", '{"code":1,"reason":""}'),
    "a rank gives a number as its reason": ([ended(1, '{"reason":7}')], "Crashed", '{"reason":7}'),
    "a rank says something else than JSON": ([ended(1, "Segmentation fault")], "Crashed", "Segmentation fault"),
    "the data is wrong": ([ended(42, WRONG)], "Rejected", "a picture is cut off"),
    "nobody knows": ([], "Crashed", "a pod failed"),
    "one crashes and the other one is stopped for it": (
        [ended(75, STOPPED, 3), ended(1, CRASH, 9)],
        "Crashed",
        "CUDA error",
    ),
    "one is evicted and the other one crashes for it": (
        [ended(1, CRASH, 3), ended(75, STOPPED, 9, **EVICTED)],
        "Disrupted",
        "stopped after step 7",
    ),
    "one is evicted and still saves while the other one crashes for it": (
        [ended(1, CRASH, 9), ended(75, STOPPED, 3, disrupted_since=ago(12), **EVICTED)],
        "Disrupted",
        "stopped after step 7",
    ),
    "one crashes and the other one is evicted after it": (
        [ended(1, CRASH, 9), ended(75, STOPPED, 3, disrupted_since=ago(6), **EVICTED)],
        "Crashed",
        "CUDA error",
    ),
    "both end in the same second": ([ended(1, CRASH), ended(137, **EVICTED)], "Disrupted", "evicted by the API"),
    "both end in the same second, one of them saved": (
        [ended(1, CRASH), ended(75, STOPPED)],
        "Disrupted",
        "stopped after step 7",
    ),
    "the data is wrong, which a later pod alone says": (
        [ended(1, CRASH, 9), ended(42, WRONG, 3)],
        "Rejected",
        "a picture is cut off",
    ),
    "one is disrupted and never ends": ([ended(1, CRASH), {**EVICTED}], "Disrupted", "evicted by the API"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_of_all_pods_the_one_that_ended_first_is_to_blame(case: str) -> None:
    pods, reason, message = VERDICTS[case]
    made = look(at_work(TWO_NODES, job=ABOUT_TO_FAIL, pods=pods))
    failure = of(made).failure
    assert failure is not None
    assert (failure.reason, failure.message) == (reason, message)
    assert (of(made).phase, of(made).restarts, of(made).disruptions, acts(made)) == ("Stopping", 0, 0, [])


def test_everything_known_of_a_failure_is_written_down() -> None:
    made = look(failing(ended(1, CRASH, log_tail="Traceback")))
    failure = of(made).last_failure
    assert failure is not None
    assert (failure.attempt, failure.exit_code, failure.step, failure.time) == (1, 1, 7, NOW)
    assert (failure.pod, failure.node, failure.log_tail) == (f"{NAME}-0", "node-0", "Traceback")


def test_a_long_story_is_cut_at_its_end_and_a_log_at_its_beginning() -> None:
    failure = of(look(failing(ended(1, "a" * 2000, log_tail="b" + "c" * 4096)))).last_failure
    assert failure is not None
    assert (failure.message, failure.log_tail) == ("a" * 1024, "c" * 4096)


def test_an_attempt_without_any_pod_left_says_so() -> None:
    failure = of(look(at_work(job={"conditions": (("Failed", ""),), "active": 0}, pods=()))).last_failure
    assert failure is not None
    assert (failure.reason, failure.message) == ("Crashed", "its pods are gone")


def test_a_cause_that_is_known_stays_though_its_pods_are_gone() -> None:
    made = look(failing(state={"phase": "Stopping", "last_failure": failed(reason="Disrupted", message="evicted")}))
    assert of(made).last_failure == failed(reason="Disrupted", message="evicted")
    assert (of(made).disruptions, of(made).restarts) == (1, 0)


# What follows.


def test_a_disruption_begins_the_next_attempt_at_once_and_costs_no_restart() -> None:
    made = look(failing(ended(75, STOPPED, **EVICTED), state={"restarts": 3}))
    state = of(made)
    assert (state.phase, state.attempt, state.disruptions, state.restarts) == ("Queued", 2, 1, 3)
    assert (state.job_name, state.job_uid) == (name_of("align", 2), None)
    assert acts(made) == [CreateAttempt("align", 2)]
    assert (told(made), warned(made)) == (["Disrupted"], [])
    assert made.status.phase == "Queued"


def test_a_stop_after_a_checkpoint_says_which() -> None:
    assert of(look(failing(ended(75, STOPPED)))).checkpoint == Checkpoint(step=7, time=NOW)
    assert of(look(failing(ended(1, CRASH)))).checkpoint is None
    assert of(look(failing(ended(75, '{"code":75,"step":null}')))).checkpoint is None


def test_a_crash_begins_the_next_attempt_later_and_costs_no_disruption() -> None:
    made = look(failing(ended(1, CRASH), state={"disruptions": 20, "progress": None}))
    state = of(made)
    assert (state.phase, state.attempt, state.disruptions, state.restarts) == ("Backoff", 1, 20, 1)
    assert (state.job_name, state.job_uid) == (None, None)
    assert state.next_attempt_time is not None
    assert in_future(8) <= state.next_attempt_time <= in_future(10)
    assert (acts(made), told(made), made.wake) == ([], ["Restarting"], state.next_attempt_time)
    assert warned(made) == ["Restarting"]
    assert (made.status.phase, said(made, "Progressing")) == ("Running", "True Backoff")


def test_the_next_attempt_begins_when_its_time_has_come() -> None:
    here = world(ALIGN, states=[of(look(failing(ended(1, CRASH))))])
    early, due = look(here, in_future(6)), look(here, in_future(10))
    assert (of(early).phase, acts(early)) == ("Backoff", [])
    assert (of(due).phase, of(due).attempt, of(due).next_attempt_time) == ("Queued", 2, None)
    assert acts(due) == [CreateAttempt("align", 2)]
    at_once = world(ALIGN, states=[of(early).to(next_attempt_time=None)])
    assert acts(look(at_once)) == [CreateAttempt("align", 2)]


@pytest.mark.parametrize("restarts", range(1, 12))
def test_the_wait_doubles_up_to_the_most_less_a_fifth_at_most(restarts: int) -> None:
    longest = min(600.0, 10.0 * 2 ** (restarts - 1))
    waits = {backoff(Backoff(), restarts, f"uid-{number}/align").total_seconds() for number in range(200)}
    assert 0.8 * longest < min(waits) < 0.84 * longest
    assert 0.96 * longest < max(waits) <= longest


def test_the_wait_is_a_stages_own_and_the_same_for_whoever_asks() -> None:
    limits = Backoff(initial=2, max=60)
    assert backoff(limits, 2, "a") == backoff(limits, 2, "a")
    assert len({backoff(limits, 2, seed) for seed in "abc"}) == 3
    assert backoff(limits, 10_000, "a") <= timedelta(seconds=60)
    assert backoff(Backoff(initial=0), 3, "a") == timedelta(0)


BUDGETS: dict[str, tuple[Raw, dict[str, int], Raw, str]] = {
    "the last restart": ({"limit": 2}, {"restarts": 1}, ended(1, CRASH), ""),
    "one crash too many": ({"limit": 2}, {"restarts": 2, "disruptions": 9}, ended(1, CRASH), "TooManyRestarts"),
    "no restart at all": ({"limit": 0}, {}, ended(1, CRASH), "TooManyRestarts"),
    "the last disruption": ({"disruptionLimit": 2}, {"disruptions": 1}, ended(75), ""),
    "one disruption too many": (
        {"disruptionLimit": 2},
        {"disruptions": 2, "restarts": 9},
        ended(75),
        "TooManyDisruptions",
    ),
    "no disruption at all": ({"disruptionLimit": 0}, {}, ended(75), "TooManyDisruptions"),
    "a crash with all disruptions spent": ({"disruptionLimit": 0}, {"disruptions": 9}, ended(1), ""),
    "a disruption with all restarts spent": ({"limit": 0}, {"restarts": 9}, ended(75), ""),
    "wrong data with nothing spent": ({}, {}, ended(42, WRONG), "Rejected"),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_restarts_and_disruptions_have_budgets_of_their_own(case: str) -> None:
    retry, spent, pod, reason = BUDGETS[case]
    made = look(failing(pod, raw=stage(retry=retry), state=spent, then=[CHAT]))
    assert said(made, "Failed") == (f"True {reason}" if reason else "")
    assert made.status.phase in (("Failed",) if reason else ("Running", "Queued"))
    if reason:
        assert (of(made).phase, of(made).completion_time, made.status.completion_time) == ("Failed", NOW, NOW)
        assert (acts(made), told(made), warned(made)) == ([], [reason], [reason])
        assert of(made, "chat").phase == "Pending"
        assert (said(made, "Complete"), said(made, "Progressing")) == ("False Failed", "False Failed")


AGAIN: dict[str, tuple[Raw, str]] = {
    "the same step, code and words": ({}, "RepeatedFailureAtStep"),
    "another step": ({"step": 6}, ""),
    "other words": ({"message": "NaN"}, ""),
    "another code": ({"exit_code": 3}, ""),
    "not the attempt before": ({"attempt": 2}, ""),
    "a disruption": ({"reason": "Disrupted"}, ""),
}


@pytest.mark.parametrize("case", AGAIN)
def test_the_same_failure_at_the_same_step_twice_running_ends_the_job(case: str) -> None:
    otherwise, reason = AGAIN[case]
    before = failed(**{"attempt": 3, "exit_code": 1, "step": 7, "message": "CUDA error", **otherwise})
    made = look(failing(ended(1, CRASH), attempt=4, state={"last_failure": before, "restarts": 1}))
    assert said(made, "Failed") == (f"True {reason}" if reason else "")
    assert of(made).restarts == 2


def test_a_failure_before_the_first_step_is_not_taken_for_the_same_one() -> None:
    words = '{"code":1,"reason":"no GPU"}'
    before = failed(attempt=1, exit_code=1, message="no GPU")
    made = look(failing(ended(1, words), attempt=2, state={"last_failure": before}))
    assert (said(made, "Failed"), of(made).phase) == ("", "Backoff")
