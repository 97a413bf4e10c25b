"""The chart with what others bring to a cluster: their real definitions are served, and their objects come and go.

No controller of theirs need run: what is asked is whether an API server that knows their kinds takes ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.helm import CASES, ROOT, needs_helm
from tests.helm_release import Place, Releases, changed, named
from tests.kube.waiting import eventually
from tests.operator_install import definition as served
from tests.operator_space import marks

pytest_plugins = ("tests.helm_release_fixtures",)
CRDS = Path(os.environ.get("ZIYA_TEST_CRDS") or ROOT.parent / "shared" / "crds")
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of other projects' kinds in {CRDS}")
pytestmark = [needs_helm, needs_crds, *marks("chart-others")]
FILES = (
    "serving.kserve.io_inferenceservices.yaml",
    "serving.kserve.io_servingruntimes.yaml",
    "keda.sh_scaledobjects.yaml",
    "monitoring.coreos.com_servicemonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
    "cert-manager.io_certificates.yaml",
)
KINDS = {"InferenceService", "ServingRuntime", "ScaledObject", "ServiceMonitor", "PrometheusRule", "Certificate"}
WITH_OTHERS = ("keda", "tls", "kserve", "kserve tls")


@pytest.fixture(scope="module")
def others(place: Place) -> Iterator[None]:
    """Those that are there already stay as they are."""
    with ExitStack() as stack:
        for file in FILES:
            body = yaml.load((CRDS / file).read_bytes(), yaml.CSafeLoader)
            stack.enter_context(served(place.api, body, ours=False))
        yield


def test_these_cases_have_every_kind_of_others(others: None, releases: Releases) -> None:
    found = {one["kind"] for case in WITH_OTHERS for one in releases("helm4", CASES[case]).rendered()}
    assert found >= KINDS


@pytest.mark.parametrize("case", WITH_OTHERS)
def test_objects_of_others_come_and_go(case: str, others: None, releases: Releases) -> None:
    release = releases("helm4", CASES[case])
    release.install()
    before = release.check()
    release.upgrade(gateway__maxInFlight=7, logLevel="WARNING")
    release.check()
    release.helm("rollback", release.name, "1")
    release.case = CASES[case]
    assert release.check() == before
    release.helm("uninstall", release.name)
    release.check_gone(before)
    eventually(lambda: not release.labelled(), seconds=90)


def test_turning_monitoring_off_takes_its_objects_away(others: None, releases: Releases) -> None:
    release = releases("helm4", CASES["hpa"])
    release.install()
    before = release.check()
    release.upgrade(monitoring__enabled=False)
    absent, new = changed(before, release.check())
    assert {kind for kind, _, _ in absent} == {"ServiceMonitor", "PrometheusRule", "ConfigMap"}
    assert not new
    release.check_gone(named(before, absent))
