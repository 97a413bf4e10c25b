"""From method and path to what is asked for: which verb, on which resource, where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.kube.errors import method_not_allowed, no_such_path
from tests.kube.kinds import Kind, Kinds
from tests.kube.objects import Key
from tests.kube.rbac import Use

_SINGLE = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "POST": "create"}


@dataclass(frozen=True)
class Target:
    """A request for a resource. `name` is "" for a collection, `sub` is the subresource."""

    verb: str
    kind: Kind
    namespace: str
    name: str
    sub: str

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.sub}" if self.sub else self.kind.plural

    @property
    def use(self) -> Use:
        return Use(self.verb, self.kind.group, self.resource, self._where)

    @property
    def _where(self) -> str:
        """A namespace counts as being inside itself."""
        return self.name if self.kind.id == ("", "namespaces") else self.namespace


def target(kinds: Kinds, method: str, path: str, query: Mapping[str, str]) -> Target:
    """Raises 404 for what is not served and 405 for what cannot be done with it."""
    steps = [step for step in path.split("/") if step]
    if steps[0] == "api":
        group, version, rest = "", steps[1], steps[2:]
    else:
        group, version, rest = steps[1], steps[2], steps[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and not (group == "" and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.at(group, version, rest[0])
    name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced) or not _has(kind, sub):
        raise no_such_path()
    return Target(_verb(kind, method, name, sub, query), kind, namespace, name, sub)


def _has(kind: Kind, sub: str) -> bool:
    return not sub or sub in kind.subresources or (sub == "status" and kind.status)


def _verb(kind: Kind, method: str, name: str, sub: str, query: Mapping[str, str]) -> str:
    if method not in _SINGLE:
        raise method_not_allowed()
    watches = query.get("watch", "false").lower() in ("1", "true")
    verb = _SINGLE[method]
    if not name:
        verb = {"GET": "watch" if watches else "list", "POST": "create", "DELETE": "deletecollection"}.get(method, "")
    elif watches and method == "GET":
        verb = "watch"
    if not sub and ((name and method == "POST") or verb not in kind.verbs):
        raise method_not_allowed()
    return verb
