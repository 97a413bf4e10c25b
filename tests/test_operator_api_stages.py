"""The operator over the Kubernetes API: a job from its first stage to its last, and the children that it makes."""

from __future__ import annotations

from tests.kube.objects import Object, controller_of
from tests.kube.waiting import gone
from tests.operator_space import History, OperatorSpace, marks

pytest_plugins = ("tests.operator_space_fixtures",)
pytestmark = marks(__name__)

TRAIN: Object = {"name": "align", "type": "align", "data": [{"data": "data/captions"}]}
DIGEST = "sha256:" + "a" * 64


def test_stages_run_one_after_another_to_the_end(space: OperatorSpace) -> None:
    test = {"name": "test", "type": "eval", "needs": ["align"]}
    serve = {"name": "serve", "type": "promote", "needs": ["align", "test"]}
    space.submit("whole", TRAIN, test, serve, promotion={"inferenceService": "whole", "stepSeconds": 0})
    [pod] = space.attempt("whole", "align")
    assert space.kubelet.pods("whole", "test") == []
    space.kubelet.succeed(pod, stage="align", step=12, artifact={"path": "align/model", "digest": DIGEST})
    [pod] = space.attempt("whole", "test")
    trained = space.stage("whole", "align")
    assert (trained["phase"], trained["artifact"]["digest"], trained["artifact"]["step"]) == ("Succeeded", DIGEST, 12)
    assert space.inference("whole") is None
    space.kubelet.succeed(pod, stage="test", metrics={"caption/en.exact": 0.5})
    served = space.until(lambda: space.inference("whole"), "whole")
    assert served["spec"]["predictor"]["model"]["storageUri"] == trained["artifact"]["uri"]
    space.make_ready("whole")
    job = space.reach("whole", "Complete")
    stages = job["status"]["stages"]
    assert [one["name"] for one in stages] == ["align", "test", "serve"]
    assert {one["phase"] for one in stages} == {"Succeeded"}
    assert stages[1]["metrics"] == {"caption/en.exact": 0.5}
    space.tell("whole", "Started", "StageComplete", "Promoting", "Promoted", "Complete")


def test_the_job_of_an_attempt_is_made_suspended_and_then_let_run(space: OperatorSpace) -> None:
    history = History(space.batch.list_namespaced_job, space.namespace)
    uid = space.submit("fence", TRAIN)["metadata"]["uid"]
    [pod] = space.attempt("fence", "align")
    told = history.until(lambda _, job: job["metadata"]["labels"]["ziya.dev/job"] == "fence" and _at_work(job))
    ours = [(kind, job) for kind, job in told if job["metadata"]["labels"]["ziya.dev/job"] == "fence"]
    assert (ours[0][0], ours[0][1]["spec"]["suspend"]) == ("ADDED", True)
    job = ours[-1][1]
    owner = controller_of(job)
    assert owner is not None
    assert (owner["kind"], owner["uid"], owner["blockOwnerDeletion"]) == ("TrainingJob", uid, True)
    assert space.stage("fence", "align")["jobUid"] == job["metadata"]["uid"]
    assert job["metadata"]["name"] == space.stage("fence", "align")["jobName"]
    assert (pod["spec"]["serviceAccountName"], pod["spec"]["automountServiceAccountToken"]) == ("ziya-trainer", False)
    assert "finalizers" in space.job("fence")["metadata"]
    space.delete("fence")
    space.until(lambda: gone(lambda: space.job("fence")))


def _at_work(job: Object) -> bool:
    return not job["spec"]["suspend"] and bool(job["status"].get("active"))


def test_a_stage_on_two_nodes_is_a_gang_that_finds_itself(space: OperatorSpace) -> None:
    parallelism = {"nodes": 2, "procsPerNode": 4}
    space.submit("gang", {**TRAIN, "parallelism": parallelism})
    first, second = space.attempt("gang", "align", nodes=2)
    job = space.child("gang", "align")
    assert job is not None
    spec, name = job["spec"], job["metadata"]["name"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    disruption, codes = spec["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (codes["action"], codes["onExitCodes"]["values"]) == ("FailJob", [42, 75])
    services = space.space.request("GET", f"/api/v1/namespaces/{space.namespace}/services")["items"]
    [service] = [one for one in services if controller_of(one) == controller_of(job)]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    for index, pod in enumerate((first, second)):
        assert pod["spec"]["hostname"] == f"{name}-{index}"
        assert pod["spec"]["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        environment = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        assert environment["PET_NNODES"]["value"] == "2"
        assert environment["PET_NPROC_PER_NODE"]["value"] == "4"
        assert environment["PET_MASTER_ADDR"]["value"] == f"{name}-0.{service['metadata']['name']}"
        assert "job-completion-index" in environment["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    space.kubelet.succeed(second)
    space.kubelet.succeed(first, stage="align", step=3, artifact={"path": "align/model", "digest": DIGEST})
    job = space.reach("gang", "Complete")
    assert job["status"]["stages"][0]["artifact"]["step"] == 3


def test_a_job_deleted_midway_stops_its_pods_first_and_leaves_nothing(space: OperatorSpace) -> None:
    space.submit("gone", TRAIN)
    [pod] = space.attempt("gone", "align")
    child = space.child("gone", "align")
    assert child is not None
    space.kubelet.lost.add(pod["metadata"]["name"])
    space.delete("gone")
    space.until(lambda: (space.child("gone", "align") or {"metadata": {}})["metadata"].get("deletionTimestamp"))
    # Its pod has not ended, so it is still there, too.
    assert space.job("gone")["metadata"]["finalizers"] == ["ziya.dev/stop-stages"]
    space.kubelet.lost.clear()
    space.until(lambda: gone(lambda: space.job("gone")))
    space.until(lambda: space.child("gone", "align") is None and space.kubelet.pods("gone") == [])


def test_a_job_made_again_shares_no_name_with_the_one_before(space: OperatorSpace) -> None:
    space.submit("again", TRAIN)
    space.attempt("again", "align")
    before = space.stage("again", "align")["jobName"]
    space.delete("again")
    space.until(lambda: gone(lambda: space.job("again")))
    space.submit("again", TRAIN)
    [pod] = space.attempt("again", "align")
    state = space.stage("again", "align")
    assert (state["attempt"], state["jobName"] == before) == (1, False)
    space.kubelet.succeed(pod)
    space.reach("again", "Complete")


def test_a_data_stage_without_a_claim_is_not_accepted(space: OperatorSpace) -> None:
    space.submit("nowhere", TRAIN, output={})
    space.until(lambda: space.condition("nowhere", "Accepted").get("status") == "False", "nowhere")
    assert space.condition("nowhere", "Accepted")["reason"] == "NoClaim"
    assert space.child("nowhere", "align") is None
