"""The chart's values: each changes something, and what cannot be is refused with a sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

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
    Case,
    Refused,
    needs_helm,
    objects,
    pods,
    text,
)

pytestmark = needs_helm

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
READY = sorted(path.name for path in CHART.glob("values-*.yaml"))

# A value is tried where it means something: in the case of the first name here that begins its own, else in "keda".
WHERE = {
    "model.path": "default",
    "model.pvc": "pvc",
    "model.url": "url",
    "networkPolicy.objectStore": "url",
    "networkPolicy.knativeNamespaces": "knative",
    "tls.secretName": "tls by hand",
    "tls": "tls",
    "redis.auth": "tls",
    "redis.tlsSecret": "tls elsewhere",
    "redis.egress": "redis elsewhere",
    "redis.urlSecret": "redis with a password",
    "redis.url": "redis elsewhere",
    "llama.kserve.enabled": "kserve",
    "llama.kserve.mode": "kserve",
    "llama.kserve": "knative",
    "llama.vllm": "vllm",
    "autoscaling.kind": "hpa",
    "vision.replicas": "default",
    "qformer.replicas": "default",
    "gateway.replicas": "default",
    "llama.replicas": "default",
    "operator.workers.replicas": "numbers",
    "operator.data.replicas": "numbers",
    "redis.enabled": "",  # below, with what it needs
}
# By a whole or a last name, what no rule below would make of the value that is there.
OTHER: dict[str, Any] = {
    "resources": {"requests": {"cpu": "3", "memory": "3Gi"}, "limits": {"memory": "7Gi"}},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "image.pullSecrets": ["registry"],
    "model.source": "pvc",
    "model.url.from": "s3://elsewhere/ziya",
    "gateway.allowFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "vision.device": "cuda",
    "qformer.device": "cuda",
    "llama.sharedMemory": "1Gi",
    "redis.maxMemory": "1gb",
    "redis.url": "redis://elsewhere.example.org:6379/1",
    "redis.egress.cidr": "198.51.100.0/24",
    "operator.data.claims": ["other"],
    "operator.data.ports": [8443],
    "autoscaling.prometheus": "http://thanos:9090",
    "networkPolicy.apiServer.cidr": "198.51.100.1/32",
    "networkPolicy.apiServer.ports": [16443],
    "networkPolicy.objectStore.cidr": "198.51.100.2/32",
    "networkPolicy.knativeNamespaces": ["mesh"],
    "networkPolicy.collector.cidr": "198.51.100.3/32",
    "tracing.endpoint": "https://elsewhere.example.org",
    "gateway.ingress.host": "other.example.org",
    "gateway.scaling.min": 1,
}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; lists and maps that may hold anything count as one value."""
    if isinstance(tree, dict) and tree and not path.endswith(("resources", "nodeSelector")):
        for name, value in tree.items():
            yield from leaves(value, f"{path}.{name}".lstrip("."))
    else:
        yield path, tree


def schema_of(path: str) -> dict[str, Any]:
    node = SCHEMA
    for name in path.split("."):
        node = resolved(node)["properties"][name]
    return {**resolved(node), **node}


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def another(path: str, value: Any) -> Any:
    """A value that is allowed and not the one that is there."""
    for name in (path, path.rpartition(".")[2]):
        if name in OTHER:
            return OTHER[name]
    schema = schema_of(path)
    if "enum" in schema:
        return next(one for one in schema["enum"] if one != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if schema.get("maximum") == 1 else value + 1 if value + 1 <= schema.get("maximum", 1e12) else 1
    return {"team": "apps"} if isinstance(value, dict) else f"{value}2" if value else "named"


@pytest.mark.parametrize("section", VALUES)
def test_every_value_changes_something(section: str) -> None:
    before: dict[str, str] = {}
    for path, value in leaves(VALUES[section], section):
        case = next((found for begin, found in WHERE.items() if path.startswith(begin)), "keda")
        if case:
            if case not in before:
                before[case] = text(CASES[case])
            there = {**ready(CASES[case].file), **CASES[case].values}
            changed = another(path, there.get(path, value))
            chosen = Case(CASES[case].file, {**CASES[case].values, **needed(path), path: changed})
            assert text(chosen) != before[case], f"{path} changes nothing"


def ready(file: str) -> dict[str, Any]:
    """A file of values, by dotted names."""
    return dict(leaves(yaml.safe_load((CHART / file).read_text("utf-8")))) if file else {}


def needed(path: str) -> dict[str, Any]:
    """What another value asks for."""
    return {"model.pvc.claim": "checkpoint"} if path == "model.source" else {}


def test_large_numbers_are_written_out() -> None:
    """Helm's templates would make 1e+06 of a million, which no program reads as a whole number."""
    whole = {"llama__maxWaiting": 1_000_000, "llama__maxContext": 1_048_576, "gateway__maxInFlight": 100_000}
    whole |= {"gateway__maxTokensInFlight": 100_000_000, "gateway__apiKeys__tokensPerMinute": 100_000_000}
    whole |= {"gateway__apiKeys__enabled": True, "gateway__apiKeys__secretName": "keys"}
    assert not re.search(r"\de\+\d", text(**whole))


def test_redis_can_be_another_one() -> None:
    assert text(CASES["redis elsewhere"]) != text()
    assert "StatefulSet" not in text(CASES["redis elsewhere"])


@pytest.mark.parametrize("file", READY)
def test_ready_files_say_only_what_differs(file: str) -> None:
    defaults = dict(leaves(VALUES))
    for path, value in ready(file).items():
        assert path in defaults, f"{file}: {path}"
        assert value != defaults[path], f"{file}: {path} is the default"


def test_the_tiny_system_fits_four_cores_and_eight_gibibytes() -> None:
    cores = memory = 0.0
    for pod in pods(objects(text(CASES["tiny"]))):
        [container] = pod.spec["containers"]
        cores += quantity(container["resources"]["requests"]["cpu"])
        memory += quantity(container["resources"]["limits"]["memory"])
    assert cores <= 4
    assert memory <= 8 * 1024**3


def quantity(written: str) -> float:
    units = {"m": 0.001, "Mi": 1024.0**2, "Gi": 1024.0**3}
    unit = next((unit for unit in units if written.endswith(unit)), "")
    return float(written.removesuffix(unit)) * units.get(unit, 1.0)


def test_the_schema_describes_every_value_and_refuses_every_other() -> None:
    for path, node in nodes(SCHEMA):
        assert path == "" or node.get("description"), f"{path} has no description"
        if node.get("type") == "object":
            assert "additionalProperties" in node, path
    assert {path for path, _ in leaves(VALUES)} <= {path for path, _ in nodes(SCHEMA)}


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    whole = {**resolved(node), **node}
    yield path, whole
    for name, inner in whole.get("properties", {}).items():
        if not path.endswith("resources"):
            yield from nodes(inner, f"{path}.{name}".lstrip("."))


KSERVE_ON = {**dict(CASES["kserve"].values), "llama.kserve.enabled": True, "model.source": "image"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model.source": "pvc"}, "set model.pvc.claim"),
    ({"model.source": "url"}, "set model.url.from"),
    ({"gateway.apiKeys.enabled": True}, "set gateway.apiKeys.secretName"),
    ({"gateway.saltByKey": True}, "set gateway.apiKeys.enabled"),
    ({"gateway.ingress.enabled": True}, "set gateway.ingress.host"),
    ({"redis.enabled": False}, "set redis.url, or redis.urlSecret.name"),
    ({"redis.url": "redis://elsewhere:6379"}, "set redis.enabled to false"),
    ({"redis.enabled": False, "redis.url": "redis://a", "redis.urlSecret.name": "b"}, "not both"),
    ({"tls.enabled": True}, "set tls.issuer.name to an issuer of cert-manager, or tls.secretName to a Secret"),
    ({"tls.enabled": True, "tls.issuer.name": "a", "tls.secretName": "b"}, "not both"),
    (
        {**KSERVE_ON, "tls.enabled": True, "tls.secretName": "a", "llama.kserve.mode": "Knative"},
        "set llama.kserve.mode to Standard, or tls.enabled to false",
    ),
    ({"redis.auth.enabled": True}, "set redis.auth.secretName"),
    (
        {"redis.auth.enabled": True, "redis.auth.secretName": "a", "redis.enabled": False, "redis.url": "redis://b"},
        "set redis.auth.enabled to false",
    ),
    ({"redis.tlsSecret": "a"}, "set redis.enabled to false, or tls.enabled"),
    ({"autoscaling.kind": "hpa", "vision.scaling.min": 0}, "set autoscaling.kind to keda, or vision.scaling.min to 1"),
    (
        {"autoscaling.kind": "hpa", "operator.data.scaling.min": 0},
        "set autoscaling.kind to keda, or operator.data.scaling.min to 1",
    ),
    ({"gateway.scaling.min": 20}, "set it to at most 10"),
    ({"operator.workers.scaling.max": 1}, "operator.workers.scaling.min is above operator.workers.scaling.max"),
    ({**KSERVE_ON, "llama.kserve.canaryTrafficPercent": 10}, "set llama.kserve.enabled and llama.kserve.mode=Knative"),
    ({"llama.kserve.canaryTrafficPercent": 10}, "set llama.kserve.enabled and llama.kserve.mode=Knative"),
]
WITHOUT: list[tuple[dict[str, Any], str, str]] = [
    (KSERVE_ON, KSERVE, "install it, or set llama.kserve.enabled to false"),
    ({"autoscaling.kind": "keda"}, KEDA, "install it, or set autoscaling.kind to hpa or none"),
    ({"monitoring.enabled": True}, PROMETHEUS, "install it, or set monitoring.enabled to false"),
    ({"tls.enabled": True, "tls.issuer.name": "a"}, CERT_MANAGER, "install it, or set tls.secretName instead"),
]


def complaint(values: dict[str, Any], apis: tuple[str, ...] = EVERYTHING, name: str = "helm4") -> str:
    with pytest.raises(Refused) as refusal:
        text(Case("", values), apis=apis, name=name)
    said = str(refusal.value).split("\n\nUse --debug")[0]
    assert "nil pointer" not in said
    return said


@pytest.mark.parametrize("name", HELMS)
@pytest.mark.parametrize(("values", "advice"), REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(values: dict[str, Any], advice: str, name: str) -> None:
    said = complaint(values, name=name)
    assert advice in said
    assert said.count("\n") <= 1


@pytest.mark.parametrize("name", HELMS)
@pytest.mark.parametrize(("values", "api", "advice"), WITHOUT)
def test_kinds_that_the_cluster_lacks_are_named(values: dict[str, Any], api: str, advice: str, name: str) -> None:
    said = complaint(values, tuple(set(EVERYTHING) - {api}), name)
    assert api in said
    assert advice in said


@pytest.mark.parametrize("name", HELMS)
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gatewya.replicas": 1}, "gatewya"),
        ({"gateway.replica": 1}, "replica"),
        ({"gateway.replicas": 0}, "gateway"),
        ({"gateway.replicas": "2"}, "gateway"),
        ({"autoscaling.kind": "both"}, "autoscaling"),
        ({"autoscaling.kind": ["hpa", "keda"]}, "autoscaling"),
        ({"model.source": "hub"}, "model"),
        ({"llama.scaling.kvUse": 1.5}, "kvUse"),
        ({"redis.url": "redis://:password@there"}, "redis"),
        ({"gateway.scaling.min": 0}, "gateway"),
        ({"operator.workers.scaling.min": 0}, "operator"),
    ],
)
def test_the_schema_names_what_is_wrong(values: dict[str, Any], named: str, name: str) -> None:
    said = complaint(values, name=name)
    assert "don't meet the specifications of the schema" in said
    assert named in said
