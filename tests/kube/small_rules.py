"""Defaults and checks of the built-in kinds that need few: Namespaces, Services, Secrets, Roles, HPAs, Events."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube.checking import check as check_schema
from tests.kube.checking import required
from tests.kube.errors import Cause
from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_COUNTED = ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods")


def prepare(kind: Kind, obj: Object, old: Object | None) -> None:
    if kind.plural == "namespaces":
        _prepare_namespace(obj, old)
    elif kind.plural == "services":
        _prepare_service(obj, old)
    elif kind.plural == "secrets":
        _prepare_secret(obj)
    elif kind.plural == "persistentvolumeclaims" and old is None:
        obj["status"] = {"phase": "Bound"}
        obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    elif kind.plural in ("rolebindings", "clusterrolebindings"):
        for subject in obj.get("subjects") or []:
            if subject["kind"] in ("User", "Group"):
                subject.setdefault("apiGroup", "rbac.authorization.k8s.io")

    elif kind.plural == "horizontalpodautoscalers":
        obj.setdefault("spec", {}).setdefault("minReplicas", 1)
        obj.setdefault("status", {"desiredReplicas": 0})
    elif kind.plural == "poddisruptionbudgets":
        obj.setdefault("status", dict.fromkeys(_COUNTED, 0))
    elif kind.plural == "networkpolicies":
        _prepare_policy(obj.setdefault("spec", {}))


def _prepare_policy(spec: Object) -> None:
    spec.setdefault("policyTypes", ["Ingress", *(["Egress"] if spec.get("egress") else [])])
    for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
        for port in rule.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _prepare_namespace(obj: Object, old: Object | None) -> None:
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
    if old is None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}
    else:
        obj["spec"] = obj["spec"] if "spec" in obj else old["spec"]


def _prepare_service(obj: Object, old: Object | None) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("internalTrafficPolicy", "Cluster")
    spec.setdefault("clusterIP", dig(old, "spec", "clusterIP", default="127.0.0.1"))
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    obj.setdefault("status", {"loadBalancer": {}})


def _prepare_secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    given = obj.pop("stringData", None) or {}
    if given:
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in given.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}


def check(api: Api, kind: Kind, obj: Object, old: Object | None, sub: str) -> Iterator[Cause]:
    yield from check_schema(obj, kind.structure, "")
    if kind.plural == "services" and old is not None and sub == "":
        before, after = dig(old, "spec", "clusterIP"), dig(obj, "spec", "clusterIP")
        if before != after:
            yield Cause("spec.clusterIPs[0]", f'Invalid value: ["{after}"]: may not change once set')
    if kind.plural == "services" and not dig(obj, "spec", "ports") and dig(obj, "spec", "clusterIP") != "None":
        yield required("spec.ports")
    if kind.plural in ("rolebindings", "clusterrolebindings") and old is not None and old["roleRef"] != obj["roleRef"]:
        yield Cause("roleRef", "Invalid value: cannot change roleRef")
    yield from _check_bounds(kind, obj.get("spec") or {})
    if old is not None and old.get("immutable") and old.get("data") != obj.get("data"):
        yield Cause("data", "Forbidden: field is immutable when `immutable` is set", "FieldValueForbidden")


def _check_bounds(kind: Kind, spec: Object) -> Iterator[Cause]:
    if kind.plural == "horizontalpodautoscalers" and spec.get("maxReplicas", 0) < spec["minReplicas"]:
        why = "must be greater than or equal to `minReplicas`"
        yield Cause("spec.maxReplicas", f"Invalid value: {spec.get('maxReplicas', 0)}: {why}")
    if kind.plural == "poddisruptionbudgets" and {"minAvailable", "maxUnavailable"} <= spec.keys():
        yield Cause("spec", "Invalid value: minAvailable and maxUnavailable cannot be both set")
