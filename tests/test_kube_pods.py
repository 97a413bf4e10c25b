"""The kubelet of the tests' cluster: pods really run, with their volumes and variables, and stop when asked."""

from __future__ import annotations

import signal
import sys
import time

from kubernetes import client as kube

from tests.kube.cluster import Cluster
from tests.kube.objects import Object
from tests.kube.processes import marked
from tests.kube.samples import config_map, gang, job
from tests.kube.waiting import eventually, gone
from tests.kube.work import DISRUPTED, NS, WAIT, ended, pods, reason, running, terminated

pytest_plugins = ("tests.kube.work_fixtures",)


def test_a_pod_that_does_not_listen_is_killed(core: kube.CoreV1Api, cluster: Cluster) -> None:
    container = {
        "name": "main",
        "image": "x",
        "command": ["sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 0.05; done"],
    }
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    core.create_namespaced_pod(NS, {"metadata": {"name": "p", "finalizers": ["test.ziya.dev/keep"]}, "spec": spec})
    running(core)
    eventually(lambda: core.read_namespaced_pod_log("p", NS) == "deaf\n")
    began = time.monotonic()
    core.delete_namespaced_pod("p", NS)
    pod = eventually(lambda: next((each for each in pods(core) if each.status.phase == "Failed"), None))
    assert time.monotonic() - began > 0.8
    assert terminated(pod).exit_code == 128 + signal.SIGKILL
    core.patch_namespaced_pod("p", NS, {"metadata": {"finalizers": None}})
    eventually(lambda: not pods(core))


def test_a_signal_ends_a_pod(core: kube.CoreV1Api, batch: kube.BatchV1Api, cluster: Cluster) -> None:
    batch.create_namespaced_job(NS, job("j", "while true; do sleep 0.05; done"))
    name = running(core)[0].metadata.name
    cluster.kubelet.kill(NS, name, signal.SIGKILL)
    ended(batch)
    assert terminated(core.read_namespaced_pod(name, NS)).exit_code == 137


def test_on_a_lost_node_pods_stay_until_they_are_given_up(
    core: kube.CoreV1Api, batch: kube.BatchV1Api, cluster: Cluster
) -> None:
    container = {"name": "main", "image": "x", "command": ["sh", "-c", WAIT]}
    core.create_namespaced_pod(NS, {"metadata": {"name": "p"}, "spec": {"containers": [container]}})
    uid = running(core)[0].metadata.uid
    cluster.kubelet.lose_node()
    core.delete_namespaced_pod("p", NS, grace_period_seconds=1)
    eventually(lambda: not marked(uid))
    pod = core.read_namespaced_pod("p", NS)
    assert (pod.status.phase, pod.metadata.deletion_timestamp is not None) == ("Running", True)
    core.delete_namespaced_pod("p", NS, grace_period_seconds=0)
    assert gone(lambda: core.read_namespaced_pod("p", NS))


def test_pods_of_a_removed_node_fail_as_disrupted(
    core: kube.CoreV1Api, batch: kube.BatchV1Api, cluster: Cluster
) -> None:
    batch.create_namespaced_job(NS, job("j", WAIT, podFailurePolicy={"rules": [DISRUPTED]}))
    running(core)
    cluster.kubelet.lose_node()
    core.delete_node("node-0")
    assert reason(ended(batch), "Failed") == "PodFailurePolicy"


def test_a_pod_waits_for_a_node(cluster: Cluster, core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    cluster.kubelet.hold("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    batch.create_namespaced_job(NS, job("j", "true"))

    def told() -> str:
        conditions = [one for pod in pods(core) for one in pod.status.conditions or []]
        return next((one.message for one in conditions if one.reason == "Unschedulable"), "")

    assert eventually(told) == "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    assert pods(core)[0].status.phase == "Pending"
    cluster.kubelet.release()
    assert reason(ended(batch), "Complete")


def mounted(claim: str) -> Object:
    """A pod's volumes of every sort that we use, and where they are mounted."""
    token = {"serviceAccountToken": {"audience": "progress", "expirationSeconds": 600, "path": "token"}}
    facts = {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}
    volumes = [
        {"name": "claim", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "keys"}},
        {"name": "told", "projected": {"sources": [token, facts]}},
    ]
    return {"volumes": volumes}


def test_volumes_and_variables_are_what_the_pod_asked_for(
    cluster: Cluster, core: kube.CoreV1Api, batch: kube.BatchV1Api
) -> None:
    core.create_namespaced_config_map(NS, config_map("settings", color="red"))
    core.create_namespaced_secret(NS, {"metadata": {"name": "keys"}, "stringData": {"key": "s3cret"}})
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespaced_persistent_volume_claim(NS, {"metadata": {"name": "out"}, "spec": claim})
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "FOLDER", "value": "/data/runs/$(COLOR)"},
        {"name": "MASTER", "value": "j-0.j.default.svc.cluster.local:29500"},
        {"name": "OTHER", "value": "/database"},
    ]
    places = {
        "claim": "/data",
        "scratch": "/scratch",
        "config": "/etc/settings",
        "secret": "/etc/keys",
        "told": "/told",
    }
    mounts: list[Object] = [{"name": name, "mountPath": path} for name, path in places.items()]
    mounts[0]["subPath"] = "project"
    script = (
        "set -e; mkdir -p $FOLDER; cp /etc/settings/color /etc/keys/key /told/labels /told/token $FOLDER/; "
        'echo "$NAME $KEY $MASTER $OTHER $JOB_COMPLETION_INDEX" > $FOLDER/env; touch /scratch/x'
    )
    made = gang("j", script, size=1)
    pod = made["spec"]["template"]["spec"]
    pod.update(mounted("out"), subdomain="j")
    pod["containers"][0].update(env=env, volumeMounts=mounts)
    batch.create_namespaced_job(NS, made)
    assert reason(ended(batch), "Complete"), [
        core.read_namespaced_pod_log(each.metadata.name, NS) for each in pods(core)
    ]
    folder = cluster.claim_folder(NS, "out") / "project" / "runs" / "red"
    name = pods(core)[0].metadata.name
    assert (folder / "color").read_text() == "red"
    assert (folder / "key").read_text() == "s3cret"
    assert 'job-name="j"' in (folder / "labels").read_text()
    assert (folder / "env").read_text() == f"{name} s3cret 127.0.0.1:29500 /database 0\n"
    review = kube.AuthenticationV1Api(cluster.client()).create_token_review
    token = (folder / "token").read_text()
    assert review({"spec": {"token": token, "audiences": ["progress"]}}).status.user.extra[
        "authentication.kubernetes.io/pod-name"
    ] == [name]


def test_a_pod_waits_for_what_it_mounts(core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    variable = {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "x"}}}
    batch.create_namespaced_job(NS, job("j", "test $X = 1", container={"env": [variable]}))

    def waiting() -> bool:
        states = [each.state.waiting for pod in pods(core) for each in pod.status.container_statuses or []]
        return any(each is not None and each.reason == "CreateContainerConfigError" for each in states)

    eventually(waiting)
    core.create_namespaced_config_map(NS, config_map("late", x="1"))
    assert reason(ended(batch), "Complete")


def test_python_is_ours_and_the_log_can_stand_in_for_last_words(core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    command = ["python", "-c", "import sys; print(sys.executable); sys.exit(5)"]
    container = {"command": command, "terminationMessagePolicy": "FallbackToLogsOnError"}
    batch.create_namespaced_job(NS, job("j", "", container=container))
    ended(batch)
    state = terminated(pods(core)[0])
    assert (state.exit_code, state.message) == (5, f"{sys.executable}\n")


def test_a_log_is_followed_to_its_end(core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", "for i in 1 2 3; do echo line $i; sleep 0.3; done"))
    name = running(core)[0].metadata.name
    assert core.read_namespaced_pod_log(name, NS, follow=True) == "line 1\nline 2\nline 3\n"
    assert core.read_namespaced_pod_log(name, NS, tail_lines=1) == "line 3\n"


def test_what_a_container_leaves_behind_dies_with_it(core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", "setsid sleep 60 & sleep 0.2; exit 0"))
    assert reason(ended(batch), "Complete")
    eventually(lambda: not marked(pods(core)[0].metadata.uid))
