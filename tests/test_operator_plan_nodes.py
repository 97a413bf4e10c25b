"""Attempts that end without having failed: their node is lost, their Job deleted by somebody, their nodes taken back.

All of these are disruptions: the next attempt begins at once, when nothing of the one before is left that runs.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from services.operator.actions import CreateAttempt, DeleteJob, ForceDeletePod
from services.operator.world import World
from tests.operator_worlds import (
    ABOUT_TO_FAIL,
    ALIGN,
    TWO_NODES,
    Raw,
    acts,
    after,
    ago,
    at,
    at_work,
    child,
    ended,
    failed,
    look,
    name_of,
    of,
    said,
    told,
    warned,
    world,
)

NAME = name_of("align")
UID = f"uid-of-{NAME}"
CRASH = '{"code":1,"error":"RuntimeError","reason":"CUDA error","step":7}'
STOPPED = '{"code":75,"error":"Stopped","reason":"stopped after step 7","step":7}'

# A node that is lost.

GONE = {"deleting_since": ago(601), "disrupted": "node-1 is unreachable"}
LOST: dict[str, World] = {
    "while the Job runs": at_work(TWO_NODES, pods=({}, GONE)),
    "when the other rank has crashed for it": at_work(
        TWO_NODES,
        "Stopping",
        job=ABOUT_TO_FAIL,
        pods=(ended(1, CRASH), GONE),
        state={"last_failure": failed(log_tail="Connection reset", step=7)},
    ),
    "when that crash looks like the one before": at_work(
        TWO_NODES,
        "Stopping",
        job=ABOUT_TO_FAIL,
        pods=(ended(1, CRASH), GONE),
        state={"last_failure": failed(reason="CrashedAgain")},
    ),
    "when its eviction was seen": at_work(
        TWO_NODES,
        "Stopping",
        job=ABOUT_TO_FAIL,
        pods=(ended(75, STOPPED), GONE),
        state={"last_failure": failed(reason="Disrupted")},
    ),
    "when the Job is being deleted": at_work(TWO_NODES, job={"deleting": True}, pods=(GONE,)),
    "when the Job is gone": at_work(TWO_NODES, job=None, pods=(ended(1), GONE)),
}


@pytest.mark.parametrize("case", LOST)
def test_a_pod_whose_node_is_lost_is_given_up_with_its_job_as_a_disruption(case: str) -> None:
    here = LOST[case]
    lost = next(one for one in here.pods if one.deleting_since)
    made = look(here)
    deletes = [DeleteJob(one.name, one.uid) for one in here.jobs if not one.deleting]
    assert {*acts(made)} == {ForceDeletePod(lost.name, lost.uid), *deletes}
    failure = of(made).failure
    assert failure is not None
    assert (failure.reason, of(made).phase, told(made)) == ("Disrupted", "Stopping", ["NodeLost"])
    assert warned(made) == ["NodeLost"]
    gone = look(replace(after(here, made), jobs=(), pods=()))
    assert (of(gone).disruptions, of(gone).restarts, acts(gone)) == (1, 0, [CreateAttempt("align", 2)])


def test_what_the_crashed_rank_said_of_a_lost_node_is_kept() -> None:
    failure = of(look(LOST["when the other rank has crashed for it"])).failure
    assert failure is not None
    assert (failure.message, failure.node) == (f"node node-1 is gone: pod {NAME}-1 did not end", "node-1")
    assert (failure.log_tail, failure.step) == ("Connection reset", 7)


def test_wrong_data_stays_wrong_though_a_node_is_lost_too() -> None:
    state = {"last_failure": failed(reason="Rejected")}
    here = at_work(TWO_NODES, "Stopping", job=ABOUT_TO_FAIL, pods=(ended(42), GONE), state=state)
    gone = look(replace(after(here, look(here)), jobs=(), pods=()))
    assert said(gone, "Failed") == "True Rejected"


@pytest.mark.parametrize(
    "pod", [{"deleting_since": ago(599)}, {**ended(137), **GONE}, {"deleting_since": None, "disrupted": "silent"}]
)
def test_a_pod_that_may_still_end_by_itself_is_not_given_up(pod: Raw) -> None:
    assert not [action for action in acts(look(at_work(pods=(pod,)))) if isinstance(action, ForceDeletePod)]


def test_how_long_a_node_may_be_silent_is_the_operators_setting() -> None:
    here = replace(at_work(pods=({"deleting_since": ago(31)},)), lost_after=timedelta(seconds=30))
    assert ForceDeletePod(f"{NAME}-0", f"uid-of-{NAME}-0") in acts(look(here))


# A Job that somebody deletes.


def test_a_job_that_is_deleted_by_hand_is_waited_for_and_costs_a_disruption() -> None:
    here = at_work(job={"deleting": True})
    made = look(here)
    failure = of(made).failure
    assert failure is not None
    assert (failure.reason, failure.message) == ("Disrupted", f"Job {NAME} is gone before it had ended")
    assert (of(made).phase, of(made).disruptions, acts(made)) == ("Stopping", 0, [])
    gone = look(replace(after(here, made), jobs=(), pods=()))
    assert (of(gone).disruptions, of(gone).restarts, acts(gone)) == (1, 0, [CreateAttempt("align", 2)])
    assert told(gone) == ["Disrupted"]


@pytest.mark.parametrize("phase", ["Queued", "Running"])
def test_a_job_that_is_gone_at_once_costs_a_disruption(phase: str) -> None:
    made = look(at_work(phase=phase, job=None, pods=()))
    assert (of(made).attempt, of(made).disruptions, acts(made)) == (2, 1, [CreateAttempt("align", 2)])


def test_the_next_attempt_waits_for_pods_that_outlive_their_job() -> None:
    """`kubectl delete job` takes the Job at once, and its pods after it."""
    here = at_work(TWO_NODES, job=None, pods=(ended(75), {"deleting_since": ago(1)}))
    made = look(here)
    assert (of(made).phase, of(made).attempt, acts(made)) == ("Stopping", 1, [])
    left = tuple(replace(one, phase="Failed") for one in here.pods)
    assert acts(look(replace(after(here, made), pods=left))) == [CreateAttempt("align", 2)]


def test_another_job_of_that_name_is_not_taken_for_the_attempt() -> None:
    here = at_work(job={"uid": "another"}, pods=())
    made = look(here)
    assert (of(made).attempt, of(made).disruptions, acts(made)) == (2, 1, [CreateAttempt("align", 2)])
    assert acts(look(after(here, made))) == [DeleteJob(NAME, "another")]


# A Job that its queue takes back.


def test_a_running_job_that_its_queue_suspends_is_deleted_and_costs_a_disruption() -> None:
    here = at_work(job={"suspended": True, "queued": True, "started": False}, queueName="research")
    made = look(here)
    assert acts(made) == [DeleteJob(NAME, UID)]
    failure = of(made).failure
    assert failure is not None
    assert (failure.reason, of(made).phase) == ("Disrupted", "Stopping")
    assert "its queue has taken the nodes back" in failure.message
    gone = look(replace(after(here, made), jobs=(), pods=()))
    assert (of(gone).disruptions, acts(gone)) == (1, [CreateAttempt("align", 2)])


# Jobs of attempts of the past.


@pytest.mark.parametrize("stray", [{"suspended": True}, {}, {"deleting": True}])
def test_nothing_goes_on_before_jobs_of_the_past_are_gone(stray: Raw) -> None:
    here = world(ALIGN, states=[at(ALIGN, "Backoff", 2, next_attempt_time=ago(1))])
    past = child(at(ALIGN, "Running", 1), **stray)
    made = look(replace(here, jobs=(past,)))
    assert acts(made) == ([] if past.deleting else [DeleteJob(NAME, UID)])
    assert (of(made).phase, of(made).attempt) == ("Backoff", 2)


def test_jobs_of_the_past_that_are_over_disturb_nobody() -> None:
    here = world(ALIGN, states=[at(ALIGN, "Backoff", 2, next_attempt_time=ago(1))])
    past = child(at(ALIGN, "Running", 1), conditions=(("Failed", ""),))
    assert acts(look(replace(here, jobs=(past,)))) == [CreateAttempt("align", 3)]
