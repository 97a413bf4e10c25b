"""May they? Roles and their bindings as they are in the store at that moment; and a record of who used what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.kube.errors import ApiError
from tests.kube.kinds import Kind
from tests.kube.objects import Object
from tests.kube.store import Store
from tests.kube.tokens import PREFIX, User

_GROUP = "rbac.authorization.k8s.io"
_OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")
_DISCOVERY = ("/api", "/apis", "/openapi", *_OPEN_PATHS)


class Use(NamedTuple):
    """One kind of access. `resource` has its subresource behind a slash; `namespace` is "" for the whole cluster."""

    verb: str
    group: str
    resource: str
    namespace: str = ""


class Rbac:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.used: dict[str, set[Use]] = defaultdict(set)
        self.refused: dict[str, set[Use]] = defaultdict(set)

    def authorize(self, user: User, kind: Kind, use: Use, name: str) -> None:
        """Notes the use; 403 if it is not allowed."""
        self.used[user.name].add(use)
        if not self.allows(user, use, name):
            self.refused[user.name].add(use)
            raise _refusal(user, kind, use, name)

    def authorize_path(self, user: User, path: str) -> None:
        """What is no resource: discovery for whoever is known, health and version for all."""
        known = "system:authenticated" in user.groups
        open_to_them = _DISCOVERY if known else _OPEN_PATHS
        if "system:masters" not in user.groups and not any(
            path == each or path.startswith(f"{each}/") for each in open_to_them
        ):
            message = f'forbidden: User "{user.name}" cannot get path "{path}"'
            raise ApiError(403, "Forbidden", message, {})

    def allows(self, user: User, use: Use, name: str = "") -> bool:
        if "system:masters" in user.groups:
            return True
        if use[1:3] == ("authorization.k8s.io", "selfsubjectaccessreviews"):
            return "system:authenticated" in user.groups
        return any(_covers(rule, use, name) for rule in self._rules(user, use.namespace))

    def _rules(self, user: User, namespace: str) -> Iterator[Object]:
        for binding in self._store.listed((_GROUP, "clusterrolebindings")):
            if _binds(binding, user):
                yield from self._role("clusterroles", ("", binding["roleRef"]["name"]))
        if not namespace:
            return
        for binding in self._store.listed((_GROUP, "rolebindings"), namespace):
            if _binds(binding, user):
                ref = binding["roleRef"]
                if ref["kind"] == "ClusterRole":
                    yield from self._role("clusterroles", ("", ref["name"]))
                else:
                    yield from self._role("roles", (namespace, ref["name"]))

    def _role(self, plural: str, key: tuple[str, str]) -> list[Object]:
        role = self._store.get((_GROUP, plural), key)
        return (role or {}).get("rules") or []


def _binds(binding: Object, user: User) -> bool:
    for subject in binding.get("subjects") or []:
        kind, name = subject["kind"], subject["name"]
        if kind == "User" and name == user.name:
            return True
        if kind == "Group" and name in user.groups:
            return True
        namespace = subject.get("namespace", binding["metadata"].get("namespace", ""))
        if kind == "ServiceAccount" and user.name == f"{PREFIX}{namespace}:{name}":
            return True
    return False


def _covers(rule: Object, use: Use, name: str) -> bool:
    names = rule.get("resourceNames") or []
    return (
        _among(use.verb, rule.get("verbs"))
        and _among(use.group, rule.get("apiGroups"))
        and _among_resources(use.resource, rule.get("resources") or [])
        and (not names or name in names)
    )


def _among(value: str, allowed: list[str] | None) -> bool:
    return "*" in (allowed or []) or value in (allowed or [])


def _among_resources(resource: str, allowed: list[str]) -> bool:
    sub = resource.partition("/")[2]
    return "*" in allowed or resource in allowed or (bool(sub) and f"*/{sub}" in allowed)


def _refusal(user: User, kind: Kind, use: Use, name: str) -> ApiError:
    subject = f'{kind.resource} "{name}"' if name else kind.resource
    where = f'in the namespace "{use.namespace}"' if use.namespace else "at the cluster scope"
    what = f'cannot {use.verb} resource "{use.resource}" in API group "{use.group}" {where}'
    message = f'{subject} is forbidden: User "{user.name}" {what}'
    details = {"name": name, "group": use.group, "kind": kind.plural}
    return ApiError(403, "Forbidden", message, {key: value for key, value in details.items() if value})


def review(rbac: Rbac, user: User, body: Object) -> Object:
    """The answer to a SelfSubjectAccessReview, or with `user` taken from its spec to a SubjectAccessReview."""
    spec = body.get("spec") or {}
    if "user" in spec:
        user = User(spec["user"], tuple(spec.get("groups") or ()))
    asked = spec.get("resourceAttributes") or {}
    resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
    use = Use(asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace", ""))
    return {**body, "status": {"allowed": rbac.allows(user, use, asked.get("name", ""))}}
