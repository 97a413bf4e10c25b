"""`ziya train submit`, `list`, `status`, `logs`, `suspend`, `resume` on an API server; the operator is this file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiextensionsV1Api, CoreV1Api, CustomObjectsApi, RbacAuthorizationV1Api

from tests.kube.cluster import Cluster
from tests.kube.waiting import eventually
from tests.stack import ziya

ROOT = Path(__file__).parents[1]
CRD = yaml.safe_load((ROOT / "deploy" / "operator" / "crd.yaml").read_text("utf-8"))
PLACE = {"group": "ziya.dev", "version": "v1alpha1", "namespace": "default", "plural": "trainingjobs"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Pods run; of Jobs there are none."""
    with Cluster(tmp_path_factory.mktemp("cluster"), controllers=("kubelet",)) as cluster:
        ApiextensionsV1Api(cluster.client()).create_custom_resource_definition(CRD)
        eventually(lambda: jobs(cluster).list_namespaced_custom_object(**PLACE)["kind"])
        yield cluster


def jobs(cluster: Cluster) -> CustomObjectsApi:
    return CustomObjectsApi(cluster.client())


def train(cluster: Cluster | Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    kubeconfig = cluster if isinstance(cluster, Path) else cluster.kubeconfig
    return ziya("train", *words, "--kubeconfig", str(kubeconfig), env={"COLUMNS": "100", **env})


def following(cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    # Who runs the tests in the background has SIGINT ignored, and all children with it.
    python = ["env", "--default-signal=INT", sys.executable]
    argv = [*python, "-m", "cli.main", "train", *words, "--kubeconfig", str(cluster.kubeconfig)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def job_file(folder: Path, name: str, **spec: Any) -> Path:
    stages = [
        {"name": "data", "type": "data", "builder": "birds.build", "shards": 4},
        {"name": "chat", "type": "chat", "data": [{"data": "data/train", "task": "dialogue"}]},
        {"name": "test", "type": "eval", "train": {"checks": [{"data": "data/test"}]}},
    ]
    whole = {
        "apiVersion": "ziya.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "labels": {"team": "birds"}},
        "spec": {"model": {"checkpoint": "data/initial"}, "output": {"pvc": "out"}, "stages": stages, **spec},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


@pytest.fixture
def name(cluster: Cluster, tmp_path: Path) -> str:
    """A job that was submitted."""
    name = f"birds-{uuid.uuid4().hex[:8]}"
    done = train(cluster, "submit", str(job_file(tmp_path, name)))
    assert done.returncode == 0, done.stderr
    return name


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


def report(cluster: Cluster, name: str, phase: str, *stages: dict[str, Any], **status: Any) -> None:
    """What the operator would write."""
    body = {"status": {"phase": phase, "stages": list(stages), **status}}
    jobs(cluster).patch_namespaced_custom_object_status(**PLACE, name=name, body=body)


def chat(phase: str, attempt: int, **more: Any) -> dict[str, Any]:
    return {"name": "chat", "type": "chat", "phase": phase, "attempt": attempt, **more}


def start_pod(cluster: Cluster, name: str, attempt: int, script: str, index: int = 0) -> str:
    """As a stage's Job would, on one node of its gang."""
    job = jobs(cluster).get_namespaced_custom_object(**PLACE, name=name)
    pod = f"{name}-chat-a{attempt}-{index}"
    labels = {"job": name, "job-uid": job["metadata"]["uid"], "stage": "chat", "attempt": str(attempt)}
    body = {
        "metadata": {
            "name": pod,
            "labels": {f"ziya.dev/{key}": value for key, value in labels.items()},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "trainer", "image": "x", "command": ["sh", "-c", script]}],
        },
    }
    CoreV1Api(cluster.client()).create_namespaced_pod("default", body)
    return pod


def until_over(cluster: Cluster, *pods: str) -> None:
    core = CoreV1Api(cluster.client())
    for pod in pods:
        eventually(lambda pod=pod: core.read_namespaced_pod(pod, "default").status.phase in ("Succeeded", "Failed"))


FAILURE = {
    "attempt": 1,
    "reason": "Crashed",
    "exitCode": 1,
    "pod": "birds-chat-a1-0",
    "node": "node-7",
    "step": 41,
    "message": "step 42: loss lm is nan",
    "logTail": "step 41 lm 2.5\nstep 42: loss lm is nan",
}


def test_a_file_becomes_an_object_and_what_to_do_next_is_said(cluster: Cluster, tmp_path: Path) -> None:
    name = f"birds-{uuid.uuid4().hex[:8]}"
    done = train(cluster, "submit", str(job_file(tmp_path, name)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"submitted training job {name} to namespace default"
    assert f"ziya train status {name} --watch" in done.stdout
    made = jobs(cluster).get_namespaced_custom_object(**PLACE, name=name)
    assert made["metadata"]["labels"] == {"team": "birds"}
    assert [stage["shards"] for stage in made["spec"]["stages"]] == [4, 1, 1]


def test_a_namespace_may_be_said_by_option_or_file_but_not_otherwise_by_both(cluster: Cluster, tmp_path: Path) -> None:
    CoreV1Api(cluster.client()).create_namespace({"metadata": {"name": "research"}})
    file = job_file(tmp_path, "placed")
    raw = yaml.safe_load(file.read_text())
    raw["metadata"]["namespace"] = "research"
    file.write_text(yaml.safe_dump(raw))
    assert "leave one of the two out" in train(cluster, "submit", str(file), "-n", "default").stderr
    done = train(cluster, "submit", str(file))
    assert "to namespace research" in done.stdout
    assert "ziya train status placed -n research --watch" in done.stdout
    assert "placed" in train(cluster, "list", "-n", "research").stdout
    assert "placed" in train(cluster, "list", "-A").stdout
    assert "placed" not in train(cluster, "list").stdout


def test_a_taken_name_and_a_namespace_that_is_not_there_are_said(cluster: Cluster, name: str, tmp_path: Path) -> None:
    again = train(cluster, "submit", str(job_file(tmp_path, name)))
    assert again.returncode == 1
    assert f"there is a training job '{name}' in namespace default already: give this one another name" in again.stderr
    elsewhere = train(cluster, "submit", str(job_file(tmp_path, name)), "-n", "nowhere")
    assert f"there is no namespace 'nowhere' on the cluster at {cluster.url}" in elsewhere.stderr


def test_a_wrong_file_is_refused_with_its_place_before_the_cluster_is_asked(tmp_path: Path) -> None:
    stages = [{"name": "chat", "type": "chta"}]
    for spec, sentence in (
        ({"stages": stages}, "spec.stages[0].type: input should be 'data', 'vision'"),
        ({"output": {"path": "out"}}, "spec.output.pvc: is missing: on a cluster results go to a"),
    ):
        done = train(tmp_path / "none", "submit", str(job_file(tmp_path, "wrong", **spec)))
        assert (done.returncode, done.stdout) == (42, "")
        assert sentence in done.stderr


def test_what_only_the_cluster_refuses_is_told_with_its_field(cluster: Cluster, tmp_path: Path) -> None:
    """An older trainer's file on a newer cluster, or the other way round."""
    stricter = yaml.safe_load(yaml.safe_dump(CRD))
    spec = stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["queueName"]["maxLength"] = 3
    del spec["priorityClassName"]
    with Cluster(tmp_path, controllers=()) as other:
        ApiextensionsV1Api(other.client()).create_custom_resource_definition(stricter)
        eventually(lambda: jobs(other).list_namespaced_custom_object(**PLACE)["kind"])
        long = train(other, "submit", str(job_file(tmp_path, "long", queueName="research")))
        unknown = train(other, "submit", str(job_file(tmp_path, "unknown", priorityClassName="low")))
    assert "the cluster refuses training job 'long' in namespace default:\n  spec.queueName: Too long" in long.stderr
    assert 'unknown field "spec.priorityClassName"' in unknown.stderr
    assert (long.returncode, unknown.returncode) == (1, 1)


def test_a_cluster_without_the_definition_says_how_to_install_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, controllers=()) as empty:
        for words in (["submit", str(job_file(tmp_path, "early"))], ["list"], ["status", "early"]):
            done = train(empty, *words)
            assert done.returncode == 1
            assert "kubectl apply --server-side -f deploy/operator/crd.yaml" in done.stderr


def test_no_cluster_and_no_configuration_are_told_apart(cluster: Cluster, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "KUBECONFIG": ""}
    none = ziya("train", "list", env=home)
    assert none.returncode == 1
    assert f"there is no {tmp_path}/.kube/config; name a kubeconfig with --kubeconfig or KUBECONFIG" in none.stderr
    assert f"there is no {tmp_path}/no" in train(tmp_path / "no", "list").stderr

    raw = yaml.safe_load(cluster.kubeconfig.read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        raw["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{free.getsockname()[1]}"
    closed = tmp_path / "closed.yaml"
    closed.write_text(yaml.safe_dump(raw))
    dead = train(closed, "list")
    assert f"the cluster at {raw['clusters'][0]['cluster']['server']} does not answer: " in dead.stderr
    assert "Connection refused" in dead.stderr
    assert "Traceback" not in dead.stderr
    wrong = train(cluster, "list", "--context", "moon")
    assert "has no context 'moon'; its contexts are double" in wrong.stderr
    raw["clusters"][0]["cluster"]["server"] = cluster.url
    raw["users"][0]["user"]["token"] = "stale"
    closed.write_text(yaml.safe_dump(raw))
    assert "does not accept these credentials" in train(closed, "list").stderr


def test_a_right_that_is_missing_is_named_with_who_lacks_it(cluster: Cluster, name: str, tmp_path: Path) -> None:
    account = f"reader-{uuid.uuid4().hex[:8]}"
    kubeconfig = cluster.kubeconfig_as("default", account)
    done = train(kubeconfig, "submit", str(job_file(tmp_path, "mine")))
    assert done.returncode == 1
    assert done.stderr == (
        "ziya: no right to create trainingjobs in namespace default: the account "
        f"'system:serviceaccount:default:{account}' needs a Role that gives it\n"
    )
    rbac = RbacAuthorizationV1Api(cluster.client())
    rule = {"apiGroups": ["ziya.dev"], "resources": ["trainingjobs"], "verbs": ["get", "list"]}
    rbac.create_namespaced_role("default", {"metadata": {"name": account}, "rules": [rule]})
    who = {"kind": "ServiceAccount", "name": account, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    rbac.create_namespaced_role_binding("default", {"metadata": {"name": account}, "roleRef": role, "subjects": [who]})
    assert train(kubeconfig, "status", name).returncode == 0
    assert "no right to patch trainingjobs" in train(kubeconfig, "suspend", name).stderr
    report(cluster, name, "Running", chat("Running", 1), currentStage="chat")
    assert "no right to list pods" in train(kubeconfig, "logs", name).stderr


def test_a_job_or_stage_that_is_not_there_is_named(cluster: Cluster, name: str) -> None:
    for command in ("status", "logs", "suspend", "resume"):
        done = train(cluster, command, "nobody")
        assert done.stderr == "ziya: there is no training job 'nobody' in namespace default\n"
    done = train(cluster, "logs", name, "--stage", "align")
    assert f"training job '{name}' has no stage 'align'; its stages are data, chat, test" in done.stderr


def test_the_list_has_the_columns_of_kubectl(cluster: Cluster, name: str) -> None:
    display = {"step": "1200/5000", "loss": "1.234", "eta": "3h20m", "attempt": "2"}
    report(cluster, name, "Running", currentStage="chat", display=display)
    head, *rows = train(cluster, "list").stdout.splitlines()
    assert head.split() == ["NAME", "PHASE", "STAGE", "STEP", "LOSS", "ETA", "ATTEMPT", "AGE"]
    row = next(row for row in rows if row.startswith(name)).split()
    assert row[:-1] == [name, "Running", "chat", "1200/5000", "1.234", "3h20m", "2"]
    assert row[-1].endswith("s")
    assert head.index("STAGE") == next(row for row in rows if row.startswith(name)).index("chat")


def test_a_page_tells_how_far_each_stage_is_and_how_the_last_attempt_failed(cluster: Cluster, name: str) -> None:
    assert "no operator has looked at it yet" in train(cluster, "status", name).stdout
    progress = {"step": 40, "total": 200, "loss": 2.34567, "etaSeconds": 7290.0, "tokensPerSecond": 51234.5}
    at = {"lastTransitionTime": ago(minutes=3), "observedGeneration": 1}
    report(
        cluster,
        name,
        "Running",
        {"name": "data", "phase": "Running", "attempt": 1, "shards": [{"number": 2, "digest": "sha256:00"}]},
        chat("Running", 2, restarts=1, disruptions=4, progress=progress, lastFailure={**FAILURE, "time": ago(hours=2)}),
        {"name": "test", "phase": "Pending"},
        conditions=[
            {"type": "Accepted", "status": "True", "reason": "Valid", "message": "", **at},
            {"type": "Progressing", "status": "True", "reason": "Running", "message": "stage chat runs", **at},
            {"type": "Failed", "status": "False", "reason": "Running", "message": "", **at},
        ],
    )
    lines = train(cluster, "status", name).stdout.splitlines()
    assert lines[0].startswith(f"{name}  Running  namespace default, submitted ")
    assert lines[1] == "  Progressing (Running) stage chat runs"
    table = [line.split() for line in lines[3:7]]
    assert table[0] == "STAGE TYPE PHASE ATTEMPT RESTARTS DISRUPTIONS STEP LOSS ETA SPEED".split()  # noqa: SIM905
    assert table[1] == ["data", "data", "Running", "1", "1/4", "pieces"]
    assert table[2] == ["chat", "chat", "Running", "2", "1", "4", "40/200", "2.346", "2h1m", "51,234", "tokens/s"]
    assert table[3] == ["test", "eval", "Pending"]
    assert lines[8] == (
        "Last failure: stage chat, attempt 1, 2h0m ago: Crashed "
        "(exit code 1, step 41, pod birds-chat-a1-0, node node-7)"
    )
    assert lines[9:] == ["  step 42: loss lm is nan", "  | step 41 lm 2.5", "  | step 42: loss lm is nan"]


@pytest.mark.parametrize(("phase", "code"), [("Complete", 0), ("Failed", 1)])
def test_watching_ends_with_the_job(cluster: Cluster, name: str, phase: str, code: int) -> None:
    report(cluster, name, "Running", chat("Running", 1))
    process = following(cluster, "status", name, "--watch")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{name}  Running")
    report(cluster, name, phase, chat("Succeeded" if code == 0 else "Failed", 1))
    out, errors = process.communicate(timeout=60)
    assert f"{name}  {phase}" in out
    assert process.returncode == code
    assert errors == ("" if code == 0 else f"ziya: training job {name} has failed\n")


def test_logs_are_of_the_newest_attempt_and_of_every_node(cluster: Cluster, name: str) -> None:
    report(cluster, name, "Running", chat("Running", 1), currentStage="chat")
    old = start_pod(cluster, name, 1, "echo first; exit 1")
    new = [start_pod(cluster, name, 2, f"echo 第 {node}; printf end", node) for node in (1, 0)]
    until_over(cluster, old, *new)
    report(cluster, name, "Running", chat("Running", 2), currentStage="chat")
    assert sorted(train(cluster, "logs", name).stdout.splitlines()) == ["[0] end", "[0] 第 0", "[1] end", "[1] 第 1"]
    assert train(cluster, "logs", name, "--attempt", "1").stdout == "first\n"


def test_logs_without_pods_are_what_the_operator_kept(cluster: Cluster, name: str) -> None:
    failure = {**FAILURE, "attempt": 3}
    report(cluster, name, "Failed", chat("Failed", 3, lastFailure=failure), currentStage="chat")
    done = train(cluster, "logs", name)
    assert done.stdout == "step 41 lm 2.5\nstep 42: loss lm is nan\n"
    assert done.stderr == "the pods of attempt 3 are gone; the last lines of birds-chat-a1-0 were\n"
    none = train(cluster, "logs", name, "--attempt", "2")
    assert none.returncode == 1
    assert "the pods of attempt 2 of stage 'chat' are gone, and their log with them" in none.stderr
    assert "stage 'test' has not started yet" in train(cluster, "logs", name, "--stage", "test").stderr
    assert (
        "is of type data: the operator does it without pods" in train(cluster, "logs", name, "--stage", "data").stderr
    )


def test_following_goes_on_over_attempts_until_the_stage_is_over(cluster: Cluster, name: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    report(cluster, name, "Running", chat("Queued", 1), currentStage="chat")
    process = following(cluster, "logs", name, "--follow")
    first = start_pod(cluster, name, 1, f"echo one; while [ ! -e {go} ]; do sleep 0.05; done; echo two; exit 1")
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    go.touch()
    assert process.stdout.readline() == "two\n"
    until_over(cluster, first)
    report(cluster, name, "Running", chat("Running", 2, lastFailure=FAILURE), currentStage="chat")
    until_over(cluster, start_pod(cluster, name, 2, "echo three"))
    report(cluster, name, "Running", chat("Succeeded", 2, lastFailure=FAILURE), currentStage="test")
    out, errors = process.communicate(timeout=60)
    assert (out, process.returncode) == ("three\n", 0)
    assert errors == "chat: attempt 2\nchat: Succeeded\n"


def test_following_outlives_a_connection_that_breaks(cluster: Cluster, name: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    report(cluster, name, "Running", chat("Running", 1), currentStage="chat")
    pod = start_pod(cluster, name, 1, f"echo one; while [ ! -e {go} ]; do sleep 0.05; done; echo two")
    process = following(cluster, "logs", name, "--follow")
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    cluster.faults.partition()
    cluster.faults.heal()
    go.touch()
    assert process.stdout.readline() == "two\n"
    until_over(cluster, pod)
    report(cluster, name, "Running", chat("Succeeded", 1), currentStage="test")
    assert process.communicate(timeout=60)[0] == ""


def test_an_interrupt_ends_following_at_once(cluster: Cluster, name: str) -> None:
    report(cluster, name, "Running", chat("Running", 1), currentStage="chat")
    pods = [start_pod(cluster, name, 1, "echo here; sleep 600", node) for node in (0, 1)]
    core = CoreV1Api(cluster.client())
    for pod in pods:
        eventually(lambda pod=pod: core.read_namespaced_pod(pod, "default").status.phase == "Running")
    process = following(cluster, "logs", name, "--follow")
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] here\n", "[1] here\n"}
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors
    for pod in pods:
        core.delete_namespaced_pod(pod, "default", grace_period_seconds=0)


def test_suspend_and_resume_change_one_field(cluster: Cluster, name: str) -> None:
    def suspended() -> bool:
        return bool(jobs(cluster).get_namespaced_custom_object(**PLACE, name=name)["spec"]["suspend"])

    assert "is not suspended" in train(cluster, "resume", name).stdout
    assert "saves a checkpoint and stops" in train(cluster, "suspend", name).stdout
    assert suspended()
    assert "is suspended already" in train(cluster, "suspend", name).stdout
    assert train(cluster, "resume", name).stdout == f"{name}: goes on\n"
    assert not suspended()
    report(cluster, name, "Complete")
    done = train(cluster, "suspend", name)
    assert (done.returncode, suspended()) == (1, False)
    assert f"training job {name} is over (Complete)" in done.stderr


def test_help_lists_the_commands_and_waits_neither_for_torch_nor_for_a_cluster() -> None:
    shown = ziya("train", "--help").stdout
    assert all(command in shown for command in ("run", "submit", "list", "status", "logs", "suspend", "resume"))
    code = "import sys, cli.main, cli.train_cluster; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    light = "import sys, cli.main, cli.train; print('kubernetes' in sys.modules, 'training' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
