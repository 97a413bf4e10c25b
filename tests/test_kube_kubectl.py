"""The tests' cluster under the real, unmodified kubectl, as a user would drive it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client as kube

from tests.kube.cluster import Cluster
from tests.kube.objects import Object
from tests.kube.samples import GROUP, gadget, gadget_definition, job
from tests.kube.waiting import eventually

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl here")


class Kubectl:
    """Its cache of what the server offers is its own: ports are used again."""

    def __init__(self, kubeconfig: Path, cache: Path) -> None:
        assert KUBECTL is not None
        self._command = [KUBECTL, "--kubeconfig", str(kubeconfig), "--cache-dir", str(cache)]

    def __call__(self, *words: str, given: Object | None = None, fails: bool = False) -> str:
        done = self.start(*words, "-f", "-", given=given) if given is not None else self.start(*words)
        assert (done.returncode != 0) == fails, done.stderr + done.stdout
        return done.stderr if fails else done.stdout

    def start(self, *words: str, given: Object | None = None) -> subprocess.CompletedProcess[str]:
        text = None if given is None else yaml.safe_dump(given)
        return subprocess.run(
            [*self._command, *words], input=text, capture_output=True, text=True, timeout=60, check=False
        )

    def follow(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._command, *words], stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        kubectl = Kubectl(cluster.kubeconfig, cluster.folder / "cache")
        kubectl("apply", given=gadget_definition())
        kubectl("wait", "--for=condition=Established", f"crd/gadgets.{GROUP}", "--timeout=20s")
        yield cluster


@pytest.fixture
def kubectl(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """In a namespace of its own."""
    name = f"n{abs(hash(request.node.name)) % 10**8}"
    core = kube.CoreV1Api(cluster.client())
    core.create_namespace({"metadata": {"name": name}})
    kubectl = Kubectl(cluster.kubeconfig, cluster.folder / "cache")
    kubectl("config", "set-context", "--current", f"--namespace={name}")
    yield kubectl
    core.delete_namespace(name)


def test_apply_tells_what_it_did(kubectl: Kubectl) -> None:
    steps = [{"name": "one", "kind": "eval", "weight": 2}]  # whole: a list with defaults in it counts as changed
    assert kubectl("apply", given=gadget("a", size=1, steps=steps)) == f"gadget.{GROUP}/a created\n"
    assert kubectl("apply", given=gadget("a", size=1, steps=steps)) == f"gadget.{GROUP}/a unchanged\n"
    assert kubectl("apply", given=gadget("a", size=2, steps=steps)) == f"gadget.{GROUP}/a configured\n"
    assert kubectl("get", "gdg", "a", "-o", "jsonpath={.spec.size}") == "2"
    kubectl("apply", given=gadget("a", "one"))
    assert "size" not in json.loads(kubectl("get", "gadget", "a", "-o", "json"))["spec"]
    assert "serverside-applied" in kubectl(
        "apply", "--server-side", "--force-conflicts", given=gadget("a", "one", size=4)
    )


def test_apply_says_what_is_wrong(kubectl: Kubectl) -> None:
    told = kubectl("apply", given=gadget("a", "one", odd=1), fails=True)
    assert 'strict decoding error: unknown field "spec.odd"' in told
    told = kubectl("apply", given=gadget("a", "one", size=0), fails=True)
    assert (
        told
        == (
            'The Gadget "a" is invalid: spec.size: Invalid value: 0: '
            "spec.size in body should be greater than or equal to 1\n"
        )
        or "* spec.size: Invalid value: 0" in told
    )
    assert kubectl("get", "gdg", "a", fails=True) == f'Error from server (NotFound): gadgets.{GROUP} "a" not found\n'


def test_get_shows_the_columns_of_the_kind(kubectl: Kubectl) -> None:
    kubectl("apply", given=gadget("a", "one", size=3))
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    kubectl("patch", "gdg", "a", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    head, row = (line.split() for line in kubectl("get", "gdg").splitlines())
    assert head == ["NAME", "PHASE", "READY", "AGE"]
    assert row[:3] == ["a", "Running", "True"]
    head, row = (line.split() for line in kubectl("get", "gdg", "-o", "wide").splitlines())
    assert (head[3], row[3]) == ("SIZE", "3")
    read = yaml.safe_load(kubectl("get", "gdg", "a", "-o", "yaml"))
    assert (read["kind"], read["status"]["phase"]) == ("Gadget", "Running")
    assert kubectl("get", "gdg", "-o", "name") == f"gadget.{GROUP}/a\n"


def test_wait_ends_when_the_condition_comes(kubectl: Kubectl) -> None:
    kubectl("apply", given=gadget("a", "one"))
    waiting = kubectl.follow("wait", "--for=condition=Ready", "gdg/a", "--timeout=30s")
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    kubectl("patch", "gdg", "a", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    assert waiting.communicate(timeout=30)[0] == f"gadget.{GROUP}/a condition met\n"
    assert waiting.returncode == 0
    assert "timed out" in kubectl("wait", "--for=condition=Done", "gdg/a", "--timeout=1s", fails=True)


def test_watching_shows_every_change(kubectl: Kubectl) -> None:
    kubectl("apply", given=gadget("a", "one"))
    watching = kubectl.follow("get", "gdg", "-w")
    assert watching.stdout is not None
    with watching:
        assert watching.stdout.readline().split() == ["NAME", "PHASE", "READY", "AGE"]
        assert watching.stdout.readline().split()[0] == "a"
        kubectl("patch", "gdg", "a", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Odd"}}')
        assert watching.stdout.readline().split()[1] == "Odd"
        watching.terminate()


def test_delete_waits_until_it_is_gone(kubectl: Kubectl) -> None:
    kubectl("apply", given=gadget("a", "one"))
    kubectl("patch", "gdg", "a", "--type=merge", "-p", '{"metadata":{"finalizers":["test.ziya.dev/keep"]}}')
    deleting = kubectl.follow("delete", "gdg", "a")
    eventually(lambda: kubectl("get", "gdg", "a", "-o", "jsonpath={.metadata.deletionTimestamp}"))
    assert deleting.poll() is None
    kubectl("patch", "gdg", "a", "--type=json", "-p", '[{"op":"remove","path":"/metadata/finalizers"}]')
    assert "deleted" in deleting.communicate(timeout=30)[0]
    assert "not found" in kubectl("get", "gdg", "a", fails=True)


def test_describe_and_explain_tell_of_it(kubectl: Kubectl) -> None:
    kubectl("apply", given=gadget("a", "one", size=3))
    told = kubectl("describe", "gdg", "a")
    assert "API Version:" in told
    assert "Size:  3" in told
    assert "train\n    eval" in kubectl("explain", "gadget.spec.steps.kind")


def test_a_job_runs_to_its_end(kubectl: Kubectl) -> None:
    kubectl("apply", given=job("j", "echo hello"))
    assert "job.batch/j condition met" in kubectl("wait", "--for=condition=Complete", "job/j", "--timeout=30s")
    head, row = (line.split() for line in kubectl("get", "jobs").splitlines())
    assert dict(zip(head[:3], row[:3], strict=True)) == {"NAME": "j", "STATUS": "Complete", "COMPLETIONS": "1/1"}
    head, row = (line.split() for line in kubectl("get", "pods").splitlines())
    assert row[1:4] == ["0/1", "Completed", "0"]
    assert kubectl("logs", "job/j") == "hello\n"
    told = kubectl("describe", "job", "j")
    assert "Pods Statuses:" in told
    assert "SuccessfulCreate" in told
    assert "Exit Code:    0" in kubectl("describe", "pods")
    assert "SuccessfulCreate" in kubectl("get", "events")
    kubectl("delete", "job", "j")
    assert kubectl("get", "pods", "-o", "name") == ""


def test_a_job_with_a_misspelt_field_is_refused(kubectl: Kubectl) -> None:
    assert 'unknown field "spec.paralelism"' in kubectl("apply", given=job("j", "true", paralelism=2), fails=True)
    assert "field is immutable" in (
        kubectl("apply", given=job("k", "true", suspend=True))
        and kubectl("apply", given=job("k", "false", suspend=True), fails=True)
    )


def test_an_account_is_held_to_its_role(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    theirs = Kubectl(cluster.kubeconfig_as("default", "nobody"), tmp_path)
    told = theirs("get", "pods", fails=True)
    assert 'User "system:serviceaccount:default:nobody" cannot list resource "pods"' in told
