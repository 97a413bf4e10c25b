"""The chart on an API server, by both Helms: installed, upgraded, rolled back, uninstalled; nothing is left behind.

After every step all objects are read back and held against what `helm template` prints for the same values. No test
waits for a container. With ZIYA_TEST_KUBECONFIG, an administrator's, all of it happens in that cluster.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm import CASES, HELMS, Case, Refused, needs_helm, of_kind
from tests.helm_release import DEFINITION, Release, Releases, changed, named
from tests.kube.objects import Object
from tests.kube.space import Space
from tests.kube.waiting import eventually
from tests.operator_space import marks

pytest_plugins = ("tests.helm_release_fixtures",)
pytestmark = [needs_helm, *marks("chart-cluster")]
TINY, HPA = CASES["tiny"], Case("values-tiny.yaml", {"autoscaling.kind": "hpa"})
MERGE = "application/merge-patch+json"


def test_every_object_says_of_which_release_it_is(releases: Releases) -> None:
    """What the search for what is left behind relies on."""
    release = releases("helm4", HPA)
    for one in release.rendered():
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == release.name


@pytest.mark.parametrize("program", HELMS)
def test_a_release_from_its_install_to_its_end(program: str, releases: Releases, definition: Space) -> None:
    release = releases(program, TINY)
    assert "STATUS: deployed" in release.install()
    first = release.check()
    assert definition.request("GET", DEFINITION)["spec"]["names"]["kind"] == "TrainingJob"
    release.upgrade(vision__replicas=3, gateway__maxInFlight=7, operator__enabled=False)
    second = release.check()
    absent, new = changed(first, second)
    assert {kind for kind, _, _ in absent} >= {"Deployment", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"}
    assert not new
    release.check_gone(named(first, absent))
    release.upgrade(operator__enabled=True)
    release.check()
    assert "Rollback was a success" in release.helm("rollback", release.name, "1")
    release.case = TINY
    assert release.check() == first
    lines = release.helm("history", release.name).splitlines()[1:]
    assert [line.split("\t")[2].strip() for line in lines] == [*["superseded"] * 3, "deployed"]
    assert "REVISION: 4" in release.helm("status", release.name)
    release.helm("uninstall", release.name)
    release.check_gone(first)
    eventually(lambda: not release.labelled(), seconds=90)
    assert definition.request("GET", DEFINITION)["spec"]["names"]["kind"] == "TrainingJob"


@pytest.mark.parametrize("program", HELMS)
def test_an_upgrade_leaves_replicas_to_their_scaler(program: str, releases: Releases, definition: Space) -> None:
    release = releases(program, HPA)
    release.install()
    found = release.check()
    scalers = of_kind(found, "HorizontalPodAutoscaler")
    assert len(scalers) >= 4
    targets = [release.path(one) for one in _targets(found, scalers)]
    for path in targets:
        definition.request("PATCH", f"{path}/scale", {"spec": {"replicas": 3}}, MERGE)
    release.upgrade(gateway__maxInFlight=9, autoscaling__downSeconds=61)
    release.check()
    assert [definition.request("GET", path)["spec"]["replicas"] for path in targets] == [3] * len(targets)


def _targets(found: list[Object], scalers: list[Object]) -> list[Object]:
    """The objects that are scaled, and that therefore say nothing of replicas."""
    names = {one["spec"]["scaleTargetRef"]["name"] for one in scalers}
    targets = [one for one in of_kind(found, "Deployment") if one["metadata"]["name"] in names]
    assert len(targets) == len(names)
    assert not any("replicas" in one["spec"] for one in targets)
    return targets


@pytest.mark.parametrize("program", HELMS)
def test_two_releases_do_not_meet(program: str, releases: Releases) -> None:
    """Also of the same name: names that are not in a namespace hold it."""
    first, second = releases(program, TINY), releases(program, HPA)
    second.name = first.name
    first.install()
    second.install()
    left = first.check()
    second.check()
    first.helm("uninstall", first.name)
    first.check_gone(left)
    kept = second.check()
    assert {one["metadata"].get("namespace", second.namespace) for one in kept} == {second.namespace}
    second.helm("uninstall", second.name)
    second.check_gone(kept)
    eventually(lambda: not first.labelled(), seconds=90)


@pytest.mark.parametrize("program", HELMS)
def test_a_bad_value_changes_nothing(program: str, releases: Releases) -> None:
    release = releases(program, TINY)
    release.install()
    before = _versions(release, release.check())
    for bad in (
        {"vision__replicas": "two"},
        {"odd": 1},
        {"gateway__scaling__min": 999},
        {"redis__url": "redis://there"},
    ):
        with pytest.raises(Refused):
            release.upgrade(**bad)
        assert _versions(release, release.check()) == before
    assert len(release.helm("history", release.name).splitlines()) == 2


def _versions(release: Release, found: list[Object]) -> list[Any]:
    """Their generations: controllers of a real cluster write statuses meanwhile."""
    live = [release.live(one)["metadata"] for one in found]
    return [(one["uid"], one.get("generation"), one["labels"]) for one in live]


@pytest.mark.parametrize("program", HELMS)
def test_what_the_server_refuses_half_way_is_rolled_back(program: str, releases: Releases) -> None:
    release = releases(program, TINY)
    release.install()
    before = release.check()
    with pytest.raises(Refused, match=r"metadata\.annotations"):
        release.upgrade(**{"gateway__service__annotations": {"no name!": "x"}, "vision__replicas": 5})
    assert "failed" in release.helm("history", release.name).splitlines()[-1]
    release.helm("rollback", release.name, "1")
    assert release.check() == before


def test_helm_4_takes_over_what_helm_3_installed(releases: Releases) -> None:
    release = releases("helm3", TINY)
    release.install()
    before = release.check()
    release.program = "helm4"
    release.upgrade(vision__replicas=2, operator__enabled=False)
    absent, _ = changed(before, release.check())
    release.check_gone(named(before, absent))
    release.helm("uninstall", release.name)
    release.check_gone(before)
    eventually(lambda: not release.labelled(), seconds=90)
