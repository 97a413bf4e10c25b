"""`helm test` on an API server: its pod is made with what it needs, its end is told, and nothing of it stays.

There may be no kubelet, so the test says how the pod has ended.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helm import CASES, HELMS, needs_helm
from tests.helm_release import Release, Releases
from tests.kube.objects import Object
from tests.kube.space import Space
from tests.kube.waiting import eventually
from tests.operator_space import marks

pytest_plugins = ("tests.helm_release_fixtures",)
pytestmark = [needs_helm, *marks("chart-helm-test")]
HOOKS = {"ConfigMap", "NetworkPolicy", "Pod"}
MERGE = "application/merge-patch+json"


@contextmanager
def asking(release: Release) -> Iterator[subprocess.Popen[str]]:
    words = release.command("test", release.name, "--timeout", "60s")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            yield started
        finally:
            if started.poll() is None:
                started.kill()


def hooks(release: Release) -> list[Object]:
    """Those that are there now. Helm's own labels name them all."""
    labels = f"app.kubernetes.io/instance={release.name},app.kubernetes.io/component=test"
    places = {"ConfigMap": "/api/v1", "NetworkPolicy": "/apis/networking.k8s.io/v1", "Pod": "/api/v1"}
    plurals = {"ConfigMap": "configmaps", "NetworkPolicy": "networkpolicies", "Pod": "pods"}
    asked, found = Space(release.api, release.namespace), []
    for kind, place in places.items():
        path = f"{place}/namespaces/{release.namespace}/{plurals[kind]}"
        found += [{**one, "kind": kind} for one in asked.request("GET", path, labelSelector=labels)["items"]]
    return found


def end(release: Release, phase: str) -> Object:
    """Waits for the pod, which Helm makes last, and says that it has come to its end."""
    all_there = eventually(lambda: (found := hooks(release)) and {one["kind"] for one in found} >= HOOKS and found)
    [pod] = [one for one in all_there if one["kind"] == "Pod"]
    path = f"/api/v1/namespaces/{release.namespace}/pods/{pod['metadata']['name']}"
    Space(release.api, "").request("PATCH", f"{path}/status", {"status": {"phase": phase}}, MERGE)
    return pod


@pytest.mark.parametrize("program", HELMS)
def test_a_question_that_is_answered_passes_and_leaves_nothing(program: str, releases: Releases) -> None:
    release = releases(program, CASES["tiny"])
    release.install()
    assert not hooks(release)
    with asking(release) as started:
        pod = end(release, "Succeeded")
        told, _ = started.communicate(timeout=60)
    assert started.returncode == 0, told
    assert "Succeeded" in told
    assert pod["spec"]["containers"][0]["command"] == ["python", "/test/ask.py", "/test/example.webp"]
    eventually(lambda: not hooks(release), seconds=60)


@pytest.mark.parametrize("program", HELMS)
def test_one_that_is_not_answered_fails_and_stays_to_be_looked_at(program: str, releases: Releases) -> None:
    release = releases(program, CASES["tiny"])
    release.install()
    with asking(release) as started:
        end(release, "Failed")
        told, _ = started.communicate(timeout=60)
    assert started.returncode != 0
    assert "failed" in told.lower()
    assert "Pod" in {one["kind"] for one in hooks(release)}
