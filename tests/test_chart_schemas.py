"""Helm takes the chart, and Kubernetes what comes out: for many values, releases of Kubernetes and both Helms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.helm import (
    CASES,
    CERT_MANAGER,
    CHART,
    EVERYTHING,
    HELMS,
    KEDA,
    KSERVE,
    PROMETHEUS,
    ROOT,
    Object,
    Refused,
    helm,
    needs_helm,
    objects,
    rendered,
    text,
)

pytestmark = needs_helm
CRDS = Path(os.environ.get("ZIYA_TEST_CRDS") or ROOT.parent / "shared" / "crds")
RELEASES = [f"1.{minor}" for minor in range(29, 38)]
# Kinds of others, by the file that defines each.
THIRD_PARTY = {
    "InferenceService": "serving.kserve.io_inferenceservices.yaml",
    "ServingRuntime": "serving.kserve.io_servingruntimes.yaml",
    "ScaledObject": "keda.sh_scaledobjects.yaml",
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
    "Certificate": "cert-manager.io_certificates.yaml",
}
OTHERS = {one.partition("/")[0] for one in EVERYTHING}
NAMES = {KSERVE: "KServe", KEDA: "KEDA", PROMETHEUS: "Prometheus Operator", CERT_MANAGER: "cert-manager"}
REFUSAL = "refused: "


@pytest.mark.parametrize("name", HELMS)
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    told = helm(name, "lint", "--strict", "--quiet", str(CHART))
    assert "WARNING" not in told
    assert "ERROR" not in told


@pytest.mark.parametrize(
    "release", [RELEASES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in RELEASES[1:-1]), RELEASES[-1]]
)
def test_kubernetes_would_take_every_object(release: str) -> None:
    """Of every case, on every release from the oldest to the newest."""
    seen = 0
    for printed in in_parallel(lambda case: text(CASES[case], kubernetes=f"{release}.0"), CASES):
        for written, group in parsed(printed):
            if group not in OTHERS:
                take(written, release)
                seen += 1
            elif CRDS.is_dir():
                take_of_others(written)
    assert seen > 20 * len(CASES)


def in_parallel(render: Callable[[str], str], cases: Iterable[str]) -> list[str]:
    """Helm is a process of its own, which starts and ends in a tenth of a second."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(render, cases))


@cache
def parsed(printed: str) -> list[tuple[str, str]]:
    """Objects as JSON, and their groups. Most cases print the same for all releases."""
    return [(json.dumps(one, sort_keys=True), one["apiVersion"].rpartition("/")[0]) for one in objects(printed)]


@cache
def take(written: str, release: str) -> None:
    """Most objects are the same in many cases. A kind without a schema raises, too."""
    kubernetes_validate.validate(json.loads(written), release, strict=True)


@cache
def take_of_others(written: str) -> None:
    one = json.loads(written)
    validator(one["kind"], one["apiVersion"].rpartition("/")[2]).validate(one)


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of other projects' kinds in {CRDS}")
@pytest.mark.parametrize("kind", THIRD_PARTY)
def test_the_kinds_of_others_are_as_they_define_them(kind: str) -> None:
    found = [one for case in CASES for one in rendered(case) if one["kind"] == kind]
    assert found
    for one in found:
        take_of_others(json.dumps(one, sort_keys=True))


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of other projects' kinds in {CRDS}")
def test_a_field_that_nobody_knows_is_found() -> None:
    one = next(one for one in rendered("keda") if one["kind"] == "ScaledObject")
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        validator("ScaledObject", "v1alpha1").validate({**one, "spec": {**one["spec"], "minReplicas": 1}})
    with pytest.raises(kubernetes_validate.ValidationError):
        take('{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"odd": 1}}', "1.36")
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        take('{"apiVersion": "odd.example.org/v1", "kind": "Odd", "metadata": {"name": "a"}}', "1.36")


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


def test_both_helms_render_every_case_alike() -> None:
    for three, four in zip(*(in_parallel(by(name), CASES) for name in ("helm3", "helm4")), strict=True):
        assert sorted_objects(three) == sorted_objects(four)


def by(name: str) -> Callable[[str], str]:
    return lambda case: text(CASES[case], name=name)


@pytest.mark.parametrize("absent", EVERYTHING)
def test_what_the_cluster_lacks_is_refused_or_not_needed(absent: str) -> None:
    """By name, and never rendered as if it were there."""
    others = tuple(one for one in EVERYTHING if one != absent)
    refused = []
    for case, printed in zip(CASES, in_parallel(lambda case: attempt(case, others), CASES), strict=True):
        whole = text(CASES[case])
        if printed.startswith(REFUSAL):
            assert f"the cluster has no {NAMES[absent]} ({absent}): install it, or set " in printed
            refused.append(case)
        else:
            assert printed == whole
            assert f"apiVersion: {absent}" not in whole.splitlines()
    assert refused


def attempt(case: str, apis: tuple[str, ...]) -> str:
    try:
        return text(CASES[case], apis=apis)
    except Refused as refusal:
        return f"{REFUSAL}{refusal}"


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
