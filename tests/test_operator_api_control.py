"""The operator over the Kubernetes API: what people and queues do to a job while it is under way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes.client import ApiException

from tests.kube.objects import Object
from tests.kube.space import refused
from tests.kube.waiting import gone
from tests.operator_objects import GROUP, PLURAL
from tests.operator_space import History, OperatorSpace, marks

pytest_plugins = ("tests.operator_space_fixtures",)
pytestmark = marks(__name__)

QUEUE = "kueue.x-k8s.io/queue-name"


def train(**more: Any) -> Object:
    return {"name": "align", "type": "align", "data": [{"data": "d"}], **more}


def test_a_running_job_is_suspended_and_goes_on_as_the_next_attempt(space: OperatorSpace) -> None:
    space.submit("pause", train())
    [pod] = space.attempt("pause", "align")
    space.kubelet.kept.add(pod["metadata"]["name"])
    space.edit("pause", suspend=True)
    job = space.until(lambda: _deleting(space.child("pause", "align")), "pause")
    assert job["metadata"]["finalizers"] == ["foregroundDeletion"]
    space.state("pause", "align", "Stopping")
    assert space.condition("pause", "Suspended") == space.condition("pause", "Suspended") | {
        "status": "False",
        "reason": "Stopping",
    }
    space.kubelet.kept.clear()
    space.reach("pause", "Suspended")
    assert space.child("pause", "align") is None
    assert space.kubelet.pods("pause") == []
    assert space.condition("pause", "Suspended")["status"] == "True"
    space.tell("pause", "Suspending", "Suspended")
    space.edit("pause", suspend=False)
    [pod] = space.attempt("pause", "align", 2)
    state = space.stage("pause", "align")
    assert (state.get("restarts", 0), state.get("disruptions", 0)) == (0, 0)
    space.kubelet.succeed(pod)
    space.reach("pause", "Complete")


def _deleting(job: Object | None) -> Object | None:
    return job if job is not None and "deletionTimestamp" in job["metadata"] else None


def test_a_job_that_is_suspended_from_the_first_has_no_child(space: OperatorSpace) -> None:
    history = History(space.batch.list_namespaced_job, space.namespace)
    space.submit("later", train(), suspend=True)
    job = space.reach("later", "Suspended")
    assert job["status"]["stages"][0].get("attempt", 0) == 0
    space.edit("later", suspend=False)
    [pod] = space.attempt("later", "align")
    told = history.until(lambda _, job: _is_of(job, "later") and bool(job["status"].get("active")))
    assert {job["metadata"]["labels"]["ziya.dev/attempt"] for _, job in told if _is_of(job, "later")} == {"1"}
    space.kubelet.succeed(pod)
    space.reach("later", "Complete")


def _is_of(job: Object, name: str) -> bool:
    return bool(job["metadata"]["labels"]["ziya.dev/job"] == name)


def test_a_job_past_its_deadline_fails_and_is_stopped(space: OperatorSpace) -> None:
    space.submit("slow", train(), activeDeadlineSeconds=3600)
    space.until(lambda: space.child("slow", "align"), "slow")
    space.edit("slow", activeDeadlineSeconds=1)
    space.reach("slow", "Failed")
    assert space.condition("slow", "Failed")["reason"] == "DeadlineExceeded"
    space.until(lambda: space.child("slow", "align") is None, "slow")
    space.until(lambda: space.kubelet.pods("slow") == [], "slow")


def test_a_job_is_deleted_when_it_is_over_and_its_time_has_come(space: OperatorSpace) -> None:
    history = History(space.objects.list_namespaced_custom_object, *GROUP, space.namespace, PLURAL)
    space.submit("brief", train(), ttlSecondsAfterFinished=0)
    [pod] = space.attempt("brief", "align")
    assert space.status("brief")["phase"] == "Running"
    space.kubelet.succeed(pod)
    space.until(lambda: gone(lambda: space.job("brief")))
    told = history.until(lambda kind, job: kind == "DELETED" and job["metadata"]["name"] == "brief")
    ours = [job for _, job in told if job["metadata"]["name"] == "brief"]
    first = next(number for number, job in enumerate(ours) if "deletionTimestamp" in job["metadata"])
    assert ours[first - 1]["status"]["phase"] == "Complete"
    space.until(lambda: space.child("brief", "align") is None)


def test_a_queue_admits_the_stages(space: OperatorSpace) -> None:
    space.submit("queued", train(), queueName="research")
    job = space.until(lambda: _in_queue(space.child("queued", "align")), "queued")
    space.until(lambda: "research" in space.condition("queued", "Progressing").get("message", ""), "queued")
    assert space.condition("queued", "Progressing")["reason"] == "Queued"
    assert space.status("queued")["phase"] == "Queued"
    job = space.child("queued", "align") or {}
    assert job["spec"]["suspend"] is True
    assert space.kubelet.pods("queued") == []
    _set_suspended(space, job, False)
    [pod] = space.attempt("queued", "align")
    # Taken back for a job that is more important. Its pod is removed when it has been seen how it ended.
    space.kubelet.kept.add(pod["metadata"]["name"])
    _set_suspended(space, job, True)
    space.until(lambda: space.stage("queued", "align").get("lastFailure"), "queued")
    space.kubelet.kept.clear()
    second = space.until(lambda: _in_queue(space.child("queued", "align", 2)), "queued")
    state = space.stage("queued", "align")
    assert (state["lastFailure"]["reason"], state["disruptions"], state.get("restarts", 0)) == ("Disrupted", 1, 0)
    _set_suspended(space, second, False)
    [pod] = space.attempt("queued", "align", 2)
    space.kubelet.succeed(pod)
    space.reach("queued", "Complete")


def _in_queue(job: Object | None) -> Object | None:
    return job if job is not None and job["metadata"]["labels"].get(QUEUE) == "research" else None


def _set_suspended(space: OperatorSpace, job: Object, suspend: bool) -> None:
    """As Kueue does."""
    space.batch.patch_namespaced_job(job["metadata"]["name"], space.namespace, {"spec": {"suspend": suspend}})


def test_what_has_started_cannot_be_edited_and_what_has_not_can(space: OperatorSpace) -> None:
    test = {"name": "test", "type": "eval", "train": {"checks": [{"data": "d"}]}}
    space.submit("edited", train(), test)
    [pod] = space.attempt("edited", "align")
    for stages, said in (
        ([train(data=[{"data": "other"}]), test], "align has started and cannot be edited, except its retry"),
        ([test, train()], "align has started and cannot be removed, renamed or moved"),
        ([train(parallelism={"nodes": 2}), test], "can only be changed while spec.suspend is true"),
    ):
        with pytest.raises(ApiException) as error:
            space.edit("edited", stages=stages)
        assert error.value.status == 422
        assert said in refused(error)["message"]
    with pytest.raises(ApiException) as error:
        space.edit("edited", model={"checkpoint": "other"})
    assert "spec.model and spec.output cannot be changed" in refused(error)["message"]
    later = {**test, "train": {"checks": [{"data": "other"}]}}
    space.edit("edited", stages=[train(retry={"limit": 9}), later])
    generation = space.job("edited")["metadata"]["generation"]
    assert generation == 2
    space.until(lambda: space.status("edited").get("observedGeneration") == 2, "edited")
    assert space.stage("edited", "align")["attempt"] == 1
    space.kubelet.succeed(pod)
    [pod] = space.attempt("edited", "test")
    handed = json.loads(pod["metadata"]["annotations"]["ziya.dev/training-job"])["spec"]["stages"]
    assert handed[1]["train"]["checks"] == [{"data": "other"}]
    space.kubelet.succeed(pod)
    space.reach("edited", "Complete")


def test_a_suspended_stage_goes_on_with_as_many_nodes_as_it_gets(space: OperatorSpace) -> None:
    space.submit("wider", train())
    space.attempt("wider", "align")
    space.edit("wider", suspend=True)
    space.reach("wider", "Suspended")
    space.edit("wider", stages=[train(parallelism={"nodes": 2})])
    space.edit("wider", suspend=False)
    for pod in space.attempt("wider", "align", 2, nodes=2):
        space.kubelet.succeed(pod)
    space.reach("wider", "Complete")
