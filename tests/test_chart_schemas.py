"""Helm takes the chart, and Kubernetes what comes out: for many values, releases of Kubernetes and both Helms."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.helm import CASES, CHART, HELMS, ROOT, Object, helm, needs_helm, objects, rendered, text

pytestmark = needs_helm
CRDS = Path(os.environ.get("ZIYA_TEST_CRDS") or ROOT.parent / "shared" / "crds")
OLDEST, NEWEST = "1.29.0", "1.37.0"
# Every case on one release, every release with one case, and the edges with what uses most.
MATRIX = [
    *((case, "1.36.0") for case in CASES),
    *(("default", f"1.{minor}.0") for minor in range(30, 36)),
    *((case, release) for case in ("keda", "kserve") for release in (OLDEST, NEWEST)),
]
# Kinds of others, by the file that defines each.
THIRD_PARTY = {
    "InferenceService": "serving.kserve.io_inferenceservices.yaml",
    "ServingRuntime": "serving.kserve.io_servingruntimes.yaml",
    "ScaledObject": "keda.sh_scaledobjects.yaml",
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}


@pytest.mark.parametrize("name", HELMS)
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    told = helm(name, "lint", "--strict", "--quiet", str(CHART))
    assert "WARNING" not in told
    assert "ERROR" not in told


@pytest.mark.parametrize(("case", "release"), MATRIX)
def test_kubernetes_would_take_every_object(case: str, release: str) -> None:
    for one in rendered(case, release):
        if one["kind"] not in THIRD_PARTY:
            take(json.dumps(one, sort_keys=True), release.rsplit(".", 1)[0])


@cache
def take(written: str, release: str) -> None:
    """Most objects are the same in many cases."""
    kubernetes_validate.validate(json.loads(written), release, strict=True)


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of other projects' kinds in {CRDS}")
@pytest.mark.parametrize("kind", THIRD_PARTY)
def test_the_kinds_of_others_are_as_they_define_them(kind: str) -> None:
    seen = 0
    for case in CASES:
        for one in rendered(case):
            if one["kind"] == kind:
                validator(kind, one["apiVersion"].rpartition("/")[2]).validate(one)
                seen += 1
    assert seen


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of other projects' kinds in {CRDS}")
def test_a_field_that_nobody_knows_is_found() -> None:
    one = next(one for one in rendered("keda") if one["kind"] == "ScaledObject")
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        validator("ScaledObject", "v1alpha1").validate({**one, "spec": {**one["spec"], "minReplicas": 1}})
    with pytest.raises(kubernetes_validate.ValidationError):
        take('{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"odd": 1}}', "1.36")


@cache
def validator(kind: str, version: str) -> Any:
    """Of a definition's schema, which here refuses fields that it does not know: an API server would drop them."""
    document = yaml.load((CRDS / THIRD_PARTY[kind]).read_bytes(), yaml.CSafeLoader)
    [found] = [one for one in document["spec"]["versions"] if one["name"] == version]
    schema = closed(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items() if key not in ("properties", "default", "enum")}
    made |= {"enum": schema["enum"]} if "enum" in schema else {}
    if "properties" in schema:
        made["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


@pytest.mark.parametrize("case", ["default", "14b", "keda", "kserve", "url", "redis with a password"])
def test_both_helms_render_alike(case: str) -> None:
    assert sorted_objects(text(CASES[case], name="helm3")) == sorted_objects(text(CASES[case], name="helm4"))


def sorted_objects(printed: str) -> list[Object]:
    return sorted(objects(printed), key=lambda one: (one["kind"], one["metadata"]["name"]))


def test_a_release_may_have_a_long_name() -> None:
    made = helm("helm4", "template", "a-rather-long-name-of-a-release-made-by-an-automaton", str(CHART))
    for one in objects(made):
        if one["kind"] == "Service":
            assert len(one["metadata"]["name"]) <= 63


def test_two_objects_never_share_a_name() -> None:
    for case in CASES:
        names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in rendered(case)]
        assert len(names) == len(set(names))


def test_a_package_holds_all_that_is_needed(tmp_path: Path) -> None:
    helm("helm4", "package", str(CHART), "--destination", str(tmp_path))
    [package] = tmp_path.glob("*.tgz")
    whole = helm("helm4", "template", "trial", str(package), "--namespace", "models", "--include-crds")
    assert sorted_objects(whole) == sorted_objects(text())


def test_the_operators_files_are_the_charts() -> None:
    """Not copies: who installs without Helm applies the same."""
    for name, place in (("crd.yaml", "crds/trainingjobs.yaml"), ("rbac.yaml", "files/operator-rbac.yaml")):
        assert (ROOT / "deploy" / "operator" / name).resolve() == CHART / place


def test_the_chart_grants_what_that_file_grants() -> None:
    ours = {one["metadata"]["name"]: one["rules"] for one in rendered("default") if one["kind"] == "ClusterRole"}
    theirs = {one["metadata"]["name"]: one["rules"] for one in roles()}
    assert ours == {f"models-{name.replace('ziya', 'trial')}": rules for name, rules in theirs.items()}


def roles() -> Iterator[Object]:
    for one in yaml.safe_load_all((ROOT / "deploy" / "operator" / "rbac.yaml").read_text("utf-8")):
        if one["kind"] == "ClusterRole":
            yield one
