"""The definition of TrainingJobs: Helm installs it and never changes it, so that the guide says who does, and how."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from tests.helm import CASES, CHART, HELMS, ROOT, needs_helm
from tests.helm_release import DEFINITION, Place, Releases
from tests.kube.objects import Object, copy
from tests.kube.space import Space
from tests.kube.waiting import gone
from tests.operator_space import marks

pytest_plugins = ("tests.helm_release_fixtures",)
pytestmark = [needs_helm, *marks("chart-definition")]
FILE = "crds/trainingjobs.yaml"
OLDER = "What this column said before"


def guide() -> list[str]:
    """The command of docs/install.md, as words."""
    lines = (ROOT / "docs" / "install.md").read_text("utf-8").splitlines()
    [found] = [line for line in lines if line.startswith("kubectl apply") and "/crds" in line]
    return shlex.split(found, comments=True)


def follow(place: Place) -> str:
    kubectl = str(Path(sys.executable).with_name("kubectl"))
    words = [kubectl, "--kubeconfig", str(place.kubeconfig), *guide()[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def older() -> Object:
    """Of a release before this one: a column says something else, and there are no rules."""
    found: Object = copy(yaml.safe_load((CHART / FILE).read_text("utf-8")))
    version = found["spec"]["versions"][0]
    version["additionalPrinterColumns"][0]["description"] = OLDER
    del version["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    return found


def version(asked: Space) -> Object:
    found: Object = asked.request("GET", DEFINITION)["spec"]["versions"][0]
    return found


@pytest.mark.parametrize("program", HELMS)
def test_the_guides_command_brings_the_definition_up_to_date(
    program: str, releases: Releases, definition: Space, tmp_path: Path
) -> None:
    release = releases(program, CASES["tiny"])
    release.chart = copytree(CHART, tmp_path / "chart")
    (release.chart / FILE).write_text(yaml.safe_dump(older()), "utf-8")
    if not gone(lambda: definition.request("GET", DEFINITION)):  # this Helm will leave it as it is, so it is ours
        patch = [{"op": "replace", "path": "/spec", "value": older()["spec"]}]
        definition.request("PATCH", DEFINITION, patch, "application/json-patch+json", fieldManager="helm")
    release.install()
    release.chart = CHART
    release.upgrade(vision__replicas=2)
    assert version(definition)["additionalPrinterColumns"][0]["description"] == OLDER
    assert "trainingjobs.ziya.dev serverside-applied" in follow(releases.place)
    now = version(definition)
    assert now["additionalPrinterColumns"][0].get("description") != OLDER
    assert now["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    assert "trainingjobs.ziya.dev serverside-applied" in follow(releases.place)
    release.check()
