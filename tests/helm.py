"""The chart as the real Helm renders it: objects for a set of values, or the sentence with which Helm refuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "ziya-visual"
# `make setup` puts them there (tests/helm_wheels.py).
HELMS = {name: Path(sys.executable).parent / name for name in ("helm4", "helm3")}
RELEASE, NAMESPACE = "trial", "models"
# What others bring to a cluster; --api-versions tells Helm where there is none.
KSERVE, KEDA, PROMETHEUS = "serving.kserve.io/v1beta1", "keda.sh/v1alpha1", "monitoring.coreos.com/v1"
CERT_MANAGER = "cert-manager.io/v1"
EVERYTHING = (KSERVE, KEDA, PROMETHEUS, CERT_MANAGER)

needs_helm = pytest.mark.skipif(not HELMS["helm4"].exists(), reason="there is no Helm here: `make setup` fetches it")

Object = dict[str, Any]


class Refused(Exception):
    """Helm's own words."""


class Case(NamedTuple):
    """A way to install the chart: a file of values of ours, and values over it, by dotted names."""

    file: str = ""
    values: Mapping[str, Any] = {}


_ALL: dict[str, Any] = {
    "monitoring.enabled": True,
    "gateway.ingress.enabled": True,
    "gateway.ingress.host": "ziya.example.org",
    "gateway.apiKeys.enabled": True,
    "gateway.apiKeys.secretName": "keys",
    "gateway.allowFrom": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}],
    "operator.data.claims": ["results"],
    "tracing.endpoint": "http://collector.monitoring.svc:4318",
}
_PVC = {"model.source": "pvc", "model.pvc.claim": "checkpoint"}
_TO_ZERO = {"vision.scaling.min": 0, "qformer.scaling.min": 0, "operator.data.scaling.min": 0}
_NO_REDIS = {"redis.enabled": False}
_LOGINS = {"redis.auth.enabled": True, "redis.auth.secretName": "passwords"}
_TLS = {"tls.enabled": True, "tls.issuer.name": "stages"}
CASES: dict[str, Case] = {
    "default": Case(),
    "tiny": Case("values-tiny.yaml"),
    "14b": Case("values-14b.yaml", {"autoscaling.kind": "hpa"}),
    "hpa": Case("", {**_ALL, "autoscaling.kind": "hpa"}),
    "keda": Case("", {**_ALL, **_TO_ZERO, "autoscaling.kind": "keda"}),
    "numbers": Case("", _ALL),
    "pvc": Case("", {**_PVC, "model.pvc.path": "ziya/v1"}),
    "url": Case("", {"model.source": "url", "model.url.from": "s3://models/ziya", "model.url.secretName": "store"}),
    "redis elsewhere": Case("", {**_NO_REDIS, "redis.url": "rediss://redis.example.org:6380/0"}),
    "redis with a password": Case("", {**_NO_REDIS, "redis.urlSecret.name": "redis"}),
    "kserve": Case("values-kserve.yaml"),
    "kserve hpa": Case("values-kserve.yaml", {"autoscaling.kind": "hpa"}),
    "kserve keda": Case("values-kserve.yaml", {"autoscaling.kind": "keda", "llama.maxSurge": 0}),
    "kserve url": Case("values-kserve.yaml", {"model.source": "url", "model.url.from": "s3://models/ziya"}),
    "kserve image": Case("values-kserve.yaml", {"model.source": "image"}),
    "knative": Case("values-kserve.yaml", {"llama.kserve.mode": "Knative", "llama.kserve.canaryTrafficPercent": 10}),
    "tls": Case("", {**_ALL, **_LOGINS, **_TLS}),
    "tls by hand": Case("", {"tls.enabled": True, "tls.secretName": "certificate"}),
    "logins": Case("values-tiny.yaml", _LOGINS),
    "tls elsewhere": Case("", {**_NO_REDIS, **_TLS, "redis.url": "rediss://there:6380/0", "redis.tlsSecret": "there"}),
    "kserve tls": Case("values-kserve.yaml", {**_LOGINS, **_TLS, "tls.issuer.kind": "ClusterIssuer"}),
    "vllm": Case("", {"llama.engine": "vllm", "llama.vllm.tensorParallel": 2, "llama.vllm.quantise": "fp8"}),
    "one namespace": Case("", {"operator.namespace": "training"}),
    "serving alone": Case("", {"operator.enabled": False, "networkPolicy.enabled": False}),
}


def helm(name: str, *words: str) -> str:
    """Its output. Raises Refused."""
    done = subprocess.run([HELMS[name], *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def text(
    case: Case = CASES["default"],
    *,
    name: str = "helm4",
    apis: tuple[str, ...] = EVERYTHING,
    kubernetes: str = "1.36.0",
    **more: Any,
) -> str:
    """What `helm template` prints. In `more` a dotted name has __ for its dots. Raises Refused."""
    words = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kubernetes, "--include-crds"]
    words += [word for api in apis for word in ("--api-versions", api)]
    values = {**case.values, **{key.replace("__", "."): value for key, value in more.items()}}
    return helm(name, *words, *given(Case(case.file, values)))


def given(case: Case) -> list[str]:
    """The words by which Helm gets its values."""
    words = ["--values", str(CHART / case.file)] if case.file else []
    return words + [word for key, value in case.values.items() for word in ("--set-json", f"{key}={json.dumps(value)}")]


def objects(printed: str) -> list[Object]:
    return [one for one in yaml.load_all(printed, yaml.CSafeLoader) if one]


@cache
def rendered(case: str, kubernetes: str = "1.36.0") -> list[Object]:
    """The objects of one of the CASES; not to be changed."""
    return objects(text(CASES[case], kubernetes=kubernetes))


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def named(found: list[Object], kind: str, component: str) -> Object:
    [one] = [one for one in of_kind(found, kind) if one["metadata"]["name"] == f"{RELEASE}-{component}"]
    return one


class PodTemplate(NamedTuple):
    """What some object makes pods of."""

    name: str
    labels: Mapping[str, str]
    spec: Object


def pods(found: list[Object]) -> list[PodTemplate]:
    """Of every workload. KServe's is put together as KServe does: the runtime's container in the predictor's pod."""
    made = []
    for one in found:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet"):
            made.append(PodTemplate(name, spec["template"]["metadata"]["labels"], spec["template"]["spec"]))
        elif one["kind"] == "Pod":
            made.append(PodTemplate(name, one["metadata"]["labels"], spec))
        elif one["kind"] == "InferenceService":
            runtime = named(found, "ServingRuntime", "llama")["spec"]
            labels = {**one["metadata"]["labels"], "serving.kserve.io/inferenceservice": name}
            pod = {"containers": runtime["containers"], "volumes": runtime["volumes"], **spec["predictor"]}
            made.append(PodTemplate(f"{name}-predictor", labels, pod))
    return made


def containers(pod: PodTemplate) -> list[Object]:
    return [*pod.spec.get("initContainers", []), *pod.spec["containers"]]


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """A label selector of Kubernetes; an empty one matches all."""
    operators = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, _: value is not None,
        "DoesNotExist": lambda value, _: value is None,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[one["operator"]](labels.get(one["key"]), one.get("values", []))
        for one in selector.get("matchExpressions", [])
    )
