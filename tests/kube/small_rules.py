"""Defaults and checks of the built-in kinds that need few: Namespaces, Services, Secrets, Roles, Leases, Events."""

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
    if old is not None and old.get("immutable") and old.get("data") != obj.get("data"):
        yield Cause("data", "Forbidden: field is immutable when `immutable` is set", "FieldValueForbidden")
