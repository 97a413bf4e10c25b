"""What is planned for a stage from its first attempt to its end, and the rows of the failure table about it.

The failure table of the operator's design, as far as `plan` decides it, is in these files: here what is done twice or
by halves, quotas, hands that change a Job, an upgrade; test_operator_plan_failures.py has evictions and crashes,
test_operator_plan_nodes.py lost nodes and Jobs that are deleted, test_operator_plan_ends.py the job that is deleted,
test_operator_plan_edits.py its edits.
Rows that are about Redis, killed workers, two watchers or an API server that is away are none of `plan`'s business; for
it they mean that it is asked late or twice, which `look` tries with every world (and test_operator_interleaved.py
between any two requests). A disk that is full is the trainer's (test_training_checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.operator.actions import Action, Activate, AddFinalizer, CreateAttempt, Emit
from services.operator.children import read_job
from services.operator.status import StageStatus
from services.operator.world import World
from tests.operator_worlds import (
    ABOUT_TO_FAIL,
    ALIGN,
    CHAT,
    COMPLETE,
    EVAL,
    MERGE,
    NOW,
    TWO_NODES,
    acts,
    after,
    ago,
    at,
    at_work,
    changed,
    child,
    condition,
    ended,
    look,
    name_of,
    of,
    pod,
    said,
    told,
    training,
    world,
)

NAME = name_of("align")
UID = f"uid-of-{NAME}"


def test_a_new_job_gets_our_finalizer_and_then_its_first_attempt() -> None:
    made = look(World(training(ALIGN, CHAT).model_copy(update={"finalizers": ("other",)})))
    assert acts(made) == [AddFinalizer(), CreateAttempt("align", 1)]
    assert (made.status.phase, made.status.current_stage, made.status.start_time) == ("Queued", "align", NOW)
    assert said(made, "Accepted") == "True Accepted"
    assert said(made, "Progressing") == "True Queued"
    assert said(made, "Suspended") == "False NotSuspended"
    assert (of(made).phase, of(made).attempt, of(made).job_name, of(made).job_uid) == ("Queued", 1, NAME, None)
    assert (of(made, "chat").phase, of(made, "chat").attempt) == ("Pending", 0)


def test_a_job_is_activated_only_when_the_status_knows_its_uid() -> None:
    here = at_work(phase="Queued", state={"job_uid": None}, job={"suspended": True, "started": False}, pods=())
    made = look(here)
    assert of(made).job_uid == UID
    assert acts(made) == [Activate(NAME, UID)]
    assert made.status.phase == "Queued"


@pytest.mark.parametrize(
    ("queued", "actions", "message"),
    [
        (False, [Activate(NAME, UID)], "attempt 1 of stage align is being made"),
        (True, [], "stage align waits for queue research to admit it"),
    ],
)
def test_with_a_queue_the_job_is_handed_to_it_and_waits(queued: bool, actions: list[Action], message: str) -> None:
    job = {"suspended": True, "queued": queued, "started": False}
    made = look(at_work(phase="Queued", job=job, pods=(), queueName="research"))
    assert acts(made) == actions
    found = made.status.condition("Progressing")
    assert (found.message if found else "") == message
    assert (made.status.phase, said(made, "Progressing"), of(made).disruptions) == ("Queued", "True Queued", 0)


def test_a_job_whose_queue_was_taken_out_of_the_spec_runs_without_it() -> None:
    job = {"suspended": True, "queued": True, "started": False}
    assert acts(look(at_work(phase="Queued", job=job, pods=()))) == [Activate(NAME, UID)]


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ((), "stage align: its pods are being started"),
        (({"phase": "Pending"},), "stage align: its pods are being started"),
        (
            ({"phase": "Pending"}, {"phase": "Pending", "unscheduled": "0/4 nodes are available: 4 Insufficient gpu."}),
            "stage align: 0/4 nodes are available: 4 Insufficient gpu.",
        ),
        (
            ({"phase": "Pending", "waits": "ImagePullBackOff: no such tag"},),
            "stage align: ImagePullBackOff: no such tag",
        ),
    ],
)
def test_pods_that_find_no_node_leave_the_job_queued_and_it_says_why(
    pods: Sequence[dict[str, str]], message: str
) -> None:
    made = look(at_work(TWO_NODES, "Queued", pods=pods))
    found = made.status.condition("Progressing")
    assert found is not None
    assert (found.reason, found.message) == ("Queued", message)
    assert (made.status.phase, of(made).phase, acts(made)) == ("Queued", "Queued", [])


def test_the_stage_runs_when_the_first_of_its_pods_does() -> None:
    made = look(at_work(TWO_NODES, "Queued", pods=({"phase": "Pending"}, {})))
    assert (made.status.phase, of(made).phase, of(made).start_time) == ("Running", "Running", NOW)
    assert said(made, "Progressing") == "True Running"
    assert told(made) == ["Started"]


def test_a_stage_that_runs_is_left_alone() -> None:
    made = look(at_work())
    assert (made.actions, made.wake) == ((), None)
    assert of(made).start_time == ago(60)


WORDS = '{"code":0,"step":8,"metrics":{"loss":0.5},"artifact":{"path":"align/model","digest":"sha256:1"}}'


def test_a_complete_stage_keeps_what_its_first_pod_said_and_the_next_one_begins() -> None:
    here = at_work(TWO_NODES, job=COMPLETE, pods=(ended(0, WORDS), ended(0)), then=[CHAT])
    made = look(here)
    done = of(made)
    assert (done.phase, done.completion_time, done.metrics) == ("Succeeded", NOW, {"loss": 0.5})
    assert done.artifact is not None
    assert (done.artifact.uri, done.artifact.digest) == ("pvc://results/job-uid1/align/model", "sha256:1")
    assert done.artifact.step == 8
    assert acts(made) == [CreateAttempt("chat", 1)]
    assert told(made) == ["StageComplete"]
    assert (made.status.phase, made.status.current_stage) == ("Queued", "chat")


def test_of_two_nodes_the_one_that_ends_first_does_not_end_the_stage() -> None:
    made = look(at_work(TWO_NODES, pods=(ended(0, WORDS), {})))
    assert (of(made).phase, of(made).artifact, acts(made)) == ("Running", None, [])


@pytest.mark.parametrize("still", [{"active": 1}, {"terminating": 1}])
def test_a_complete_job_with_a_pod_left_is_waited_for(still: dict[str, int]) -> None:
    made = look(at_work(TWO_NODES, job={**COMPLETE, **still}, pods=(ended(0, WORDS), {}), then=[CHAT]))
    assert (of(made).phase, acts(made)) == ("Running", [])


@pytest.mark.parametrize(
    "words",
    [
        "",
        "done",
        "[1]",
        '{"code":0,"step":"eight","metrics":[1],"artifact":"x"}',
        '{"code":0,"step":-1,"metrics":{"a":NaN,"b":"0.5","c":true},"artifact":{"digest":7}}',
    ],
)
def test_last_words_that_make_no_sense_lose_nothing_but_themselves(words: str) -> None:
    made = look(at_work(job=COMPLETE, pods=(ended(0, words),)))
    artifact = of(made).artifact
    assert artifact is not None
    assert (artifact.uri, artifact.digest, artifact.step) == ("pvc://results/job-uid1/align/model", None, None)
    assert not of(made).metrics
    assert made.status.phase == "Complete"


def test_an_eval_stage_leaves_metrics_and_no_model() -> None:
    here = at_work(EVAL, job=COMPLETE, pods=(ended(0, '{"code":0,"step":8,"metrics":{"caption/zh.exact":0.5}}'),))
    done = of(look(here), "test")
    assert (done.phase, done.metrics, done.artifact) == ("Succeeded", {"caption/zh.exact": 0.5}, None)


def test_a_merge_has_been_done_by_the_stage_before_it() -> None:
    made = look(at_work(job=COMPLETE, pods=(ended(0, WORDS),), then=[MERGE]))
    merged = of(made, "merge")
    assert (merged.phase, merged.attempt, merged.completion_time) == ("Succeeded", 1, NOW)
    assert told(made) == ["StageComplete", "StageComplete", "Complete"]
    assert made.status.phase == "Complete"


def test_after_the_last_stage_the_job_is_complete() -> None:
    made = look(world(ALIGN, states=[at(ALIGN, "Succeeded")]))
    assert (made.status.phase, made.status.completion_time, made.status.current_stage) == ("Complete", NOW, "align")
    assert said(made, "Complete") == "True Complete"
    assert said(made, "Failed") == "False Complete"
    assert said(made, "Progressing") == "False Complete"
    assert made.actions == (Emit("Complete", "all stages are complete", warning=False, stage="", attempt=0),)


# Rows of the failure table.


def test_a_worker_that_died_before_it_made_the_job_costs_nothing_but_time() -> None:
    """And one that was killed, or whose message was lost: the status says which attempt there is to be."""
    made = look(at_work(phase="Queued", attempt=2, state={"job_uid": None}, job=None, pods=()))
    assert acts(made) == [CreateAttempt("align", 2)]
    assert (of(made).attempt, of(made).restarts, of(made).disruptions) == (2, 0, 0)


def test_a_worker_that_comes_late_finds_an_attempt_that_is_there_and_makes_no_other() -> None:
    first = look(at_work(phase="Queued", state={"job_uid": None}, job={"suspended": True}, pods=()))
    here = after(at_work(phase="Queued", job={"suspended": False}, pods=({},)), first)
    made = look(here)
    assert (acts(made), of(made).attempt, of(made).phase) == ([], 1, "Running")


@pytest.mark.parametrize(
    ("here", "progressing"),
    [
        (at_work(), "True Running"),
        (at_work(phase="Queued", pods=({"phase": "Pending"},)), "True Queued"),
        (at_work(phase="Queued", job={"suspended": True}, pods=()), "True Queued"),
        (at_work(phase="Queued", state={"job_uid": None}, job=None, pods=()), "True Queued"),
        (at_work(phase="Stopping", job={"deleting": True}), "True Stopping"),
        (world(ALIGN, states=[at(ALIGN, "Suspended")]), "True Queued"),
    ],
)
def test_what_was_said_while_redis_was_away_is_taken_back_when_somebody_looks(here: World, progressing: str) -> None:
    away = here.job.status.to(conditions=(condition("Progressing", "False", "BrokerUnavailable"),))
    made = look(changed(here, status=away))
    assert said(made, "Progressing") == progressing
    found = made.status.condition("Progressing")
    assert found is not None
    assert found.last_transition_time == NOW


def test_a_job_made_again_under_its_name_shares_neither_jobs_nor_results_with_the_one_before() -> None:
    other = training(ALIGN).model_copy(update={"uid": "uid-2"})
    first, second = look(World(training(ALIGN))), look(World(other))
    assert of(first).job_name == NAME
    assert of(second).job_name != NAME
    state = of(second).to(phase="Running", job_uid="x")
    done = {"conditions": (("Complete", ""),), "uid": "x"}
    here = World(other.model_copy(update={"status": second.status.to(stages=(state,))}), (child(state, **done),))
    artifact = of(look(here)).artifact
    assert artifact is not None
    assert artifact.uri == "pvc://results/job-uid2/align/model"


@pytest.mark.parametrize("job", [{"queued": True}, {"started": False}, {"active": 3}])
def test_a_job_that_was_changed_by_hand_is_left_alone_until_it_ends(job: dict[str, object]) -> None:
    made = look(at_work(job=job))
    assert (acts(made), of(made).phase, told(made)) == ([], "Running", [])


def test_an_edit_of_a_job_is_told_and_it_is_left_alone() -> None:
    raw = {"metadata": {"name": "j", "uid": "u"}, "spec": {"completions": 2, "parallelism": 1}}
    made = look(at_work(job={"edited": read_job(raw).edited}))
    assert (acts(made), of(made).phase, told(made)) == ([], "Running", ["JobEdited"])
    accepted = made.status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("True", "JobEdited")
    assert "its parallelism is 1, and it has 2 nodes" in accepted.message


def test_what_has_begun_under_an_older_operator_keeps_its_job() -> None:
    """Only the stage's own words count, not how its Job would be written today."""
    state = at(ALIGN, "Running", job_name="named-otherwise", job_uid="u")
    here = replace(world(ALIGN, states=[state]), jobs=(child(state, uid="u"),), pods=(pod(state),))
    made = look(here)
    assert (acts(made), of(made).job_name, said(made, "Accepted")) == ([], "named-otherwise", "True Accepted")


def test_stages_that_are_done_are_not_looked_at_again() -> None:
    done = at(ALIGN, "Succeeded")
    chat = at(CHAT, "Running")
    here = replace(world(ALIGN, CHAT, states=[done, chat]), jobs=(child(chat),), pods=(pod(chat),))
    made = look(here)
    assert (acts(made), of(made), of(made, "chat").phase) == ([], done, "Running")


def test_a_job_that_is_about_to_fail_is_not_failed_before_its_pods_are_gone() -> None:
    made = look(at_work(TWO_NODES, job=ABOUT_TO_FAIL, pods=(ended(1, "boom"), {})))
    state: StageStatus = of(made)
    assert (state.phase, state.attempt, state.restarts) == ("Stopping", 1, 0)
    assert state.failure is not None
    assert (state.failure.message, acts(made), told(made)) == ("boom", [], [])
