"""What the cluster tells of itself: its version, its groups, and the resources of each."""

from __future__ import annotations

from tests.kube.kinds import Kind, Kinds
from tests.kube.objects import Object

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-06-01T00:00:00Z",
    "goVersion": "go1.26",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_SUBRESOURCES = {
    "status": (("get", "patch", "update"), None),
    "finalize": (("update",), None),
    "log": (("get",), None),
    "binding": (("create",), ("", "v1", "Binding")),
    "scale": (("get", "patch", "update"), ("autoscaling", "v1", "Scale")),
    "eviction": (("create",), ("policy", "v1", "Eviction")),
    "token": (("create",), ("authentication.k8s.io", "v1", "TokenRequest")),
}


def answer(kinds: Kinds, path: str) -> Object | None:
    """The document at that path, if it is one of discovery."""
    steps = path.strip("/").split("/")
    if path == "/version":
        return VERSION
    if steps == ["api"]:
        return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if steps == ["apis"]:
        groups = [_group(name, versions) for name, versions in kinds.groups().items() if name]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if steps[0] == "apis" and len(steps) == 2 and steps[1] in kinds.groups():
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(steps[1], kinds.groups()[steps[1]])}
    if (steps[0], len(steps)) in (("api", 2), ("apis", 3)):
        group, version = (steps[1], steps[2]) if steps[0] == "apis" else ("", steps[1])
        return _resources(kinds, group, version)
    return None


def _group(name: str, versions: list[str]) -> Object:
    told = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": told, "preferredVersion": told[0]}


def _resources(kinds: Kinds, group: str, version: str) -> Object | None:
    served = [kind for kind in kinds if (kind.group, kind.version) == (group, version)]
    if not served:
        return None
    resources = [entry for kind in served for entry in (_resource(kind), *_below(kind))]
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _resource(kind: Kind) -> Object:
    told: Object = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
        "shortNames": list(kind.short_names),
        "categories": list(kind.categories),
    }
    return {key: value for key, value in told.items() if value != []}


def _below(kind: Kind) -> list[Object]:
    found = []
    for name in (*(("status",) if kind.status else ()), *kind.subresources):
        verbs, other = _SUBRESOURCES[name]
        entry: Object = {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.namespaced}
        entry |= {"kind": other[2] if other else kind.kind, "verbs": list(verbs)}
        if other:
            entry |= {"group": other[0], "version": other[1]}
        found.append(entry)
    return found
