"""The operator's rights are what it uses: nothing that deploy/operator/rbac.yaml grants is spare, nothing is missing.

A tour makes both programs do everything they can; the tests' own API server has written down what each account asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kube.cluster import Cluster
from tests.kube.objects import Object
from tests.kube.space import REAL
from tests.kube.waiting import gone
from tests.operator_install import TRAINER, WATCHERS, WORKERS, documents, kinds
from tests.operator_space import OperatorSpace

pytestmark = [
    pytest.mark.xdist_group("operator-rights"),
    pytest.mark.skipif(bool(REAL), reason="only the tests' own API server tells what each account has asked for"),
]

# What is needed and yet not seen here, with the reason.
UNSEEN = {
    WORKERS: {
        # A cluster with the admission plugin OwnerReferencesPermissionEnforcement refuses a child whose owner reference
        # blocks its owner's deletion, from who may not do this. The tests' server has no such plugin.
        ("update", "ziya.dev", "trainingjobs/finalizers"),
    }
}
TRAIN: Object = {"name": "align", "type": "align", "data": [{"data": "d"}]}
SERVE: Object = {"name": "serve", "type": "promote", "needs": ["align"]}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, controllers=("garbage", "jobs"), nodes=0) as cluster, kinds(cluster.client()):
        yield cluster


@pytest.fixture
def space(cluster: Cluster, tmp_path: Path) -> Iterator[OperatorSpace]:
    silent = {"ZIYA_OPERATOR_BROKER_SILENT_SECONDS": "0.5", "ZIYA_OPERATOR_FINALIZE_SECONDS": "0.5"}
    with OperatorSpace(cluster.client(), tmp_path / "operator", **silent) as space:
        yield space


def granted(account: str) -> set[tuple[str, str, str]]:
    """Verb, group and resource of every rule that is bound to it."""
    found = documents("rbac.yaml")
    roles = [
        one["roleRef"]["name"]
        for one in found
        if one["kind"] == "ClusterRoleBinding" and any(subject["name"] == account for subject in one["subjects"])
    ]
    rules = [
        rule
        for one in found
        if one["kind"] == "ClusterRole" and one["metadata"]["name"] in roles
        for rule in one["rules"]
    ]
    return {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_each_account_may_do_what_it_does_and_no_more(cluster: Cluster, space: OperatorSpace) -> None:
    promote(space)
    fail(space)
    lose_a_node(space)
    be_refused(space)
    go_on_without_a_broker(space)
    for account in (WATCHERS, WORKERS):
        user = f"system:serviceaccount:{space.namespace}:{account}"
        assert cluster.refused_of(user) == set()
        used = {(one.verb, one.group, one.resource) for one in cluster.requests_of(user)}
        assert used | UNSEEN.get(account, set()) == granted(account)
        assert not used & UNSEEN.get(account, set())


def promote(space: OperatorSpace) -> None:
    """To the end and beyond: a new InferenceService, then one that is there; the second job has no time to live."""
    promotion = {"inferenceService": "served", "steps": [100], "stepSeconds": 0}
    for name, spec in (("first", {}), ("second", {"ttlSecondsAfterFinished": 0})):
        space.submit(name, {**TRAIN, "parallelism": {"nodes": 2}}, SERVE, promotion=promotion, **spec)
        pods = space.attempt(name, "align", nodes=2)
        post_progress(space, pods[0])
        for pod in pods:
            space.kubelet.succeed(pod)
        model = space.state(name, "align", "Succeeded")["artifact"]["uri"]
        space.until(lambda model=model: model in str(space.inference("served")), name)  # type: ignore[misc]
        space.make_ready("served")
    space.until(lambda: gone(lambda: space.job("second")))
    assert space.status("first")["phase"] == "Complete"


def post_progress(space: OperatorSpace, pod: Object) -> None:
    variables = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    headers = {"Authorization": f"Bearer {space.installed.token(TRAINER, pod, 'ziya-operator')}"}
    body = {"trainerStatus": {"metrics": [{"name": "step", "value": "1"}]}}
    assert httpx.post(variables["KUBEFLOW_TRAINER_SERVER_URL"], json=body, headers=headers).status_code == 204


def fail(space: OperatorSpace) -> None:
    """The worker asks for the log of the pod, which nobody here has written."""
    space.submit("wrong", TRAIN)
    [pod] = space.attempt("wrong", "align")
    space.kubelet.end(pod, 42)
    space.reach("wrong", "Failed")


def lose_a_node(space: OperatorSpace) -> None:
    space.submit("lost", TRAIN)
    [pod] = space.attempt("lost", "align")
    space.kubelet.lost.add(pod["metadata"]["name"])
    space.kubelet.delete(pod, grace=1)
    space.attempt("lost", "align", 2)
    space.delete("lost")
    space.until(lambda: gone(lambda: space.job("lost")))


def be_refused(space: OperatorSpace) -> None:
    """An Event that is told again counts up."""
    space.submit("refused", TRAIN, pod={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]})

    def repeated() -> bool:
        found = space.space.request("GET", f"/api/v1/namespaces/{space.namespace}/events")["items"]
        return any(event["reason"] == "CreateAttemptRefused" and event["count"] > 1 for event in found)

    space.until(repeated, "refused")


def go_on_without_a_broker(space: OperatorSpace) -> None:
    """The watcher itself says that it is away, and lets a deleted job go."""
    space.redis.kill()
    space.until(lambda: space.condition("refused", "Progressing").get("reason") == "BrokerUnavailable", "refused")
    space.delete("refused")
    space.until(lambda: gone(lambda: space.job("refused")))


def test_the_account_of_training_pods_has_no_role() -> None:
    found = documents("rbac.yaml")
    subjects = [subject["name"] for one in found for subject in one.get("subjects", [])]
    assert TRAINER not in subjects
    [account] = [one for one in found if one["kind"] == "ServiceAccount" and one["metadata"]["name"] == TRAINER]
    assert account["automountServiceAccountToken"] is False


def test_nobody_may_read_secrets_or_run_something_else() -> None:
    for account in (WATCHERS, WORKERS):
        for verb, group, resource in granted(account):
            assert "*" not in (verb, group, resource)
            assert resource not in ("secrets", "pods/exec", "serviceaccounts/token")
