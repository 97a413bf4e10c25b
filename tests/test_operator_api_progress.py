"""The operator over the Kubernetes API: what a trainer posts of its progress, and who may post it."""

from __future__ import annotations

from typing import Any

import httpx

from tests.kube.objects import Object
from tests.operator_install import TRAINER, WORKERS
from tests.operator_space import OperatorSpace, marks

pytest_plugins = ("tests.operator_space_fixtures",)
pytestmark = marks(__name__)

TRAIN: Object = {"name": "align", "type": "align", "data": [{"data": "d"}]}


def running(space: OperatorSpace, name: str) -> tuple[Object, str]:
    """The pod of a new job, and the address that it is to post to."""
    space.submit(name, TRAIN)
    [pod] = space.attempt(name, "align")
    environment = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    return pod, environment["KUBEFLOW_TRAINER_SERVER_URL"]


def token(space: OperatorSpace, pod: Object | None, audience: str = "ziya-operator", account: str = TRAINER) -> str:
    """As the kubelet gets it for the pod's volume."""
    return space.installed.token(account, pod, audience)


def post(url: str, token: str, step: int = 1, **metrics: float) -> int:
    told = [
        {"name": name, "value": str(value)} for name, value in {"step": step, "total_steps": 100, **metrics}.items()
    ]
    body = {"trainerStatus": {"estimatedRemainingSeconds": 65, "metrics": told}}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(url, json=body, headers=headers, timeout=30).status_code


def accepted(space: OperatorSpace, url: str, token: str, **told: Any) -> None:
    """Again, as long as it is too soon."""
    space.until(lambda: post(url, token, **told) == 204)


def test_progress_is_written_into_the_status(space: OperatorSpace) -> None:
    pod, url = running(space, "told")
    own = token(space, pod)
    accepted(space, url, own, step=12, loss=1.2345678, learning_rate=1e-4, tokens_per_second=321.5)
    progress = space.until(lambda: space.stage("told", "align").get("progress"), "told")
    assert (progress["attempt"], progress["step"], progress["total"]) == (1, 12, 100)
    assert (progress["loss"], progress["learningRate"], progress["tokensPerSecond"]) == (1.2345678, 1e-4, 321.5)
    assert progress["etaSeconds"] == 65
    assert space.status("told")["display"] == {"step": "12/100", "loss": "1.235", "eta": "1m", "attempt": "1"}
    # Under a field manager of its own, so that no decision is undone by it.
    managers = [one["manager"] for one in space.job("told")["metadata"]["managedFields"]]
    assert any(name.startswith("ziya-progress") for name in managers)
    accepted(space, url, own, step=40)
    space.until(lambda: space.stage("told", "align")["progress"]["step"] == 40, "told")
    space.kubelet.succeed(pod)
    job = space.reach("told", "Complete")
    assert job["status"]["stages"][0]["progress"]["step"] == 40


def test_only_the_pod_of_the_attempt_may_post(space: OperatorSpace) -> None:
    pod, url = running(space, "mine")
    other, theirs = running(space, "theirs")
    own = token(space, pod)
    assert post(url, "") == 401
    assert post(url, "nonsense") == 401
    assert post(url, token(space, pod, audience="")) == 401  # the audience is the API server's
    assert post(url, token(space, pod, audience="somebody-else")) == 401
    assert post(url, token(space, None)) == 403  # no pod holds it
    assert post(url, token(space, None, account=WORKERS)) == 403
    assert post(url, token(space, other)) == 403
    assert post(theirs, own) == 403
    assert post(url.removesuffix("/1") + "/2", own) == 403
    accepted(space, url, own, step=3)
    space.until(lambda: space.stage("mine", "align").get("progress"), "mine")
    assert "progress" not in space.stage("theirs", "align")


def test_an_attempt_may_not_post_all_the_time(space: OperatorSpace) -> None:
    pod, url = running(space, "eager")
    own = token(space, pod)
    answers = {post(url, own)}

    def refused() -> bool:
        answers.add(post(url, own))
        return 429 in answers

    space.until(refused, "eager")
    assert answers <= {204, 429}
    accepted(space, url, own)


def test_a_post_that_makes_no_sense_is_refused(space: OperatorSpace) -> None:
    pod, url = running(space, "odd")
    headers = {"Authorization": f"Bearer {token(space, pod)}"}
    bodies: tuple[Any, ...] = ({}, {"trainerStatus": {"metrics": [{"name": "step", "value": "NaN"}]}}, [])
    for body in bodies:
        answer = httpx.post(url, json=body, headers=headers, timeout=30)
        assert answer.status_code == 400, answer.text
    assert httpx.post(url, content=b"{", headers=headers, timeout=30).status_code == 400
    assert "progress" not in space.stage("odd", "align")
