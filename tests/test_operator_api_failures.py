"""The operator over the Kubernetes API: how attempts end badly, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube.objects import Object
from tests.kube.waiting import gone
from tests.operator_install import WORKERS
from tests.operator_space import OperatorSpace, marks

pytest_plugins = ("tests.operator_space_fixtures",)
pytestmark = marks(__name__)

SOON = {"initial": 0.1, "max": 0.2}


def train(limit: int = 3, **more: Any) -> Object:
    return {
        "name": "align",
        "type": "align",
        "data": [{"data": "d"}],
        "retry": {"limit": limit, "backoff": SOON},
        **more,
    }


def crash(step: int, reason: str = "CUDA error: an illegal memory access was encountered") -> Object:
    return {"code": 1, "error": "RuntimeError", "reason": reason, "step": step}


def test_a_crash_is_tried_again_until_the_budget_is_used_up(space: OperatorSpace) -> None:
    space.submit("crash", train(limit=1))
    [pod] = space.attempt("crash", "align")
    space.kubelet.end(pod, 1, crash(5))
    [pod] = space.attempt("crash", "align", 2)
    state = space.stage("crash", "align")
    assert (state["restarts"], state.get("disruptions", 0)) == (1, 0)
    assert state["lastFailure"]["attempt"] == 1
    space.tell("crash", "Restarting")
    space.kubelet.end(pod, 1, crash(9))
    job = space.reach("crash", "Failed")
    failure = job["status"]["stages"][0]["lastFailure"]
    assert (failure["reason"], failure["exitCode"], failure["step"]) == ("Crashed", 1, 9)
    assert failure["pod"] == pod["metadata"]["name"]
    assert failure["message"].startswith("CUDA error")
    assert space.condition("crash", "Failed")["reason"] == "TooManyRestarts"
    space.tell("crash", "TooManyRestarts")


def test_a_crash_waits_before_it_is_tried_again(space: OperatorSpace) -> None:
    slow = {"limit": 3, "backoff": {"initial": 3600, "max": 3600}}
    space.submit("patient", {**train(), "retry": slow})
    [pod] = space.attempt("patient", "align")
    space.kubelet.end(pod, 137)
    state = space.state("patient", "align", "Backoff")
    assert (state["attempt"], "jobName" in state) == (1, False)
    assert state["lastFailure"]["message"] == "killed by signal 9 without a word"
    assert state["nextAttemptTime"] > state["lastFailure"]["time"]
    assert space.condition("patient", "Progressing")["reason"] == "Backoff"


def test_the_same_step_failing_twice_ends_the_job(space: OperatorSpace) -> None:
    space.submit("twice", train())
    for attempt in (1, 2):
        [pod] = space.attempt("twice", "align", attempt)
        space.kubelet.end(pod, 1, crash(5, "loss is nan"))
    space.reach("twice", "Failed")
    failed = space.condition("twice", "Failed")
    assert failed["reason"] == "RepeatedFailureAtStep"
    assert "loss is nan" in failed["message"]


def test_a_wrong_job_is_not_tried_again(space: OperatorSpace) -> None:
    space.submit("wrong", train())
    [pod] = space.attempt("wrong", "align")
    space.kubelet.end(pod, 42, {"code": 42, "error": "BadData", "reason": "d: no such dataset", "step": None})
    job = space.reach("wrong", "Failed")
    [state] = job["status"]["stages"]
    assert (state["attempt"], state["lastFailure"]["exitCode"]) == (1, 42)
    assert space.condition("wrong", "Failed")["reason"] == "Rejected"
    assert "no such dataset" in space.condition("wrong", "Failed")["message"]


def test_disruptions_have_a_budget_of_their_own(space: OperatorSpace) -> None:
    space.submit("moved", train(limit=0))
    [pod] = space.attempt("moved", "align")
    space.kubelet.end(pod, 75, {"code": 75, "error": "Stopped", "reason": "stopped", "step": 40})
    [pod] = space.attempt("moved", "align", 2)
    state = space.stage("moved", "align")
    assert (state.get("restarts", 0), state["disruptions"], state["checkpoint"]["step"]) == (0, 1, 40)
    # Evicted, it saves a checkpoint and ends; it is removed when its end has been seen.
    space.kubelet.kept.add(pod["metadata"]["name"])
    space.kubelet.evict(pod)
    space.until(lambda: space.stage("moved", "align")["lastFailure"]["attempt"] == 2, "moved")
    space.kubelet.kept.clear()
    [pod] = space.attempt("moved", "align", 3)
    state = space.stage("moved", "align")
    assert (state.get("restarts", 0), state["disruptions"], state["lastFailure"]["reason"]) == (0, 2, "Disrupted")
    space.tell("moved", "Disrupted")
    space.kubelet.succeed(pod)
    space.reach("moved", "Complete")


def test_too_many_disruptions_end_the_job(space: OperatorSpace) -> None:
    space.submit("unlucky", train(retry={"disruptionLimit": 0}))
    [pod] = space.attempt("unlucky", "align")
    space.kubelet.end(pod, 75)
    space.reach("unlucky", "Failed")
    assert space.condition("unlucky", "Failed")["reason"] == "TooManyDisruptions"


def test_one_crash_stops_the_whole_gang(space: OperatorSpace) -> None:
    space.submit("gang", train(parallelism={"nodes": 2}))
    first, second = space.attempt("gang", "align", nodes=2)
    space.kubelet.end(second, 1, crash(3))
    again = space.attempt("gang", "align", 2, nodes=2)
    failure = space.stage("gang", "align")["lastFailure"]
    assert (failure["exitCode"], failure["pod"]) == (1, second["metadata"]["name"])
    names = {pod["metadata"]["name"] for pod in space.kubelet.pods("gang", "align", 1)}
    assert first["metadata"]["name"] not in names
    for pod in again:
        space.kubelet.succeed(pod)
    space.reach("gang", "Complete")


def test_a_job_that_somebody_deletes_counts_as_disrupted(space: OperatorSpace) -> None:
    space.submit("meddled", train())
    [pod] = space.attempt("meddled", "align")
    name = space.stage("meddled", "align")["jobName"]
    space.kubelet.lost.add(pod["metadata"]["name"])
    space.batch.delete_namespaced_job(name, space.namespace, propagation_policy="Background")
    # The Job is gone at once, while its pod still saves a checkpoint: no other attempt begins beside it.
    space.state("meddled", "align", "Stopping", attempt=1)
    assert len(space.kubelet.pods("meddled")) == 1
    space.kubelet.lost.clear()
    [pod] = space.attempt("meddled", "align", 2)
    failure = space.stage("meddled", "align")["lastFailure"]
    assert (failure["reason"], failure["attempt"]) == ("Disrupted", 1)
    assert name in failure["message"]
    assert gone(lambda: space.batch.read_namespaced_job(name, space.namespace))
    space.kubelet.succeed(pod)
    space.reach("meddled", "Complete")


def test_a_pod_whose_node_is_gone_is_given_up(space: OperatorSpace) -> None:
    space.submit("lost", train(limit=0))
    [pod] = space.attempt("lost", "align")
    space.kubelet.lost.add(pod["metadata"]["name"])
    space.kubelet.delete(pod, grace=1)
    [pod] = space.attempt("lost", "align", 2)
    state = space.stage("lost", "align")
    assert (state.get("restarts", 0), state["disruptions"]) == (0, 1)
    assert state["lastFailure"]["reason"] == "Disrupted"
    assert space.kubelet.pods("lost", "align", 1) == []
    space.tell("lost", "NodeLost")
    space.kubelet.succeed(pod)
    space.reach("lost", "Complete")


def test_a_child_that_the_api_refuses_is_made_when_the_job_is_corrected(space: OperatorSpace) -> None:
    wrong = {"key": "nvidia.com/gpu", "operator": "Exists", "value": "true"}
    space.submit("refused", train(), pod={"tolerations": [wrong]})
    said = space.until(lambda: _refusal(space, "refused"), "refused")
    assert "tolerations" in said
    space.tell("refused", "CreateAttemptRefused")
    pod = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    space.edit("refused", pod=pod)
    [pod] = space.attempt("refused", "align")
    assert space.condition("refused", "Progressing")["reason"] == "Running"
    space.kubelet.succeed(pod)
    space.reach("refused", "Complete")


def test_a_right_that_is_missing_is_told_and_waited_for(space: OperatorSpace) -> None:
    if space.installed.may(WORKERS, "list", "secrets"):
        pytest.skip("this cluster's authorizer lets everybody do everything")
    with space.installed.without("batch", "jobs", "create"):
        space.submit("barred", train())
        said = space.until(lambda: _refusal(space, "barred"), "barred")
        assert "forbidden" in said
        space.tell("barred", "CreateAttemptRefused")
        assert space.child("barred", "align") is None
    [pod] = space.attempt("barred", "align")
    space.kubelet.succeed(pod)
    space.reach("barred", "Complete")


def _refusal(space: OperatorSpace, name: str) -> str:
    found = space.condition(name, "Progressing")
    return str(found["message"]) if found.get("reason") == "CreateAttemptRefused" else ""
