"""One request for a resource, carried out: the object, list or Status that it is answered with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.kube import rbac, scale, tokens
from tests.kube.binding import bind
from tests.kube.errors import bad_request, method_not_allowed
from tests.kube.eviction import evict
from tests.kube.kinds import Kind
from tests.kube.objects import ORPHAN, Object, dig, timestamp
from tests.kube.options import WARN, DeleteOptions, Options
from tests.kube.rbac import Rbac, Use
from tests.kube.routes import Target
from tests.kube.tokens import Tokens, User
from tests.kube.verbs import Api
from tests.kube.watching import Lists

_RETURN_THE_OBJECT = ("pods", "services", "serviceaccounts", "persistentvolumeclaims", "namespaces")
# For the sake of old clients that did not know of pods that go with their Job.
_PODS_STAY = (
    "child pods are preserved by default when jobs are deleted; "
    "set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
)


@dataclass
class Ask:
    """A request for a resource as it came: who, what, how."""

    target: Target
    user: User
    body: Any
    media: str
    query: Mapping[str, str]
    agent: str = ""

    def options(self) -> Options:
        return Options(
            manager=self.query.get("fieldManager") or self.agent.partition("/")[0] or "unknown",
            field_validation=self.query.get("fieldValidation") or WARN,
            force=self.query.get("force", "").lower() in ("1", "true"),
            dry_run="dryRun" in self.query,
        )


class Answers:
    """Everything but watches and logs, which have no end."""

    def __init__(self, api: Api, access: Rbac, people: Tokens) -> None:
        self._api, self._access, self._tokens = api, access, people
        self.lists = Lists(api.store)
        self._verbs: dict[str, Callable[[Ask, Options], tuple[int, Object]]] = {
            "get": lambda ask, _: (200, self._get(ask.target)),
            "list": lambda ask, _: (200, self._list(ask.target, ask.query)),
            "create": lambda ask, options: (201, self._create(ask, options)),
            "update": lambda ask, options: (200, self._update(ask, options)),
            "patch": self._patch,
            "delete": lambda ask, options: (200, self._delete(ask, options)),
            "deletecollection": lambda ask, _: (200, self._delete_all(ask)),
        }

    def answer(self, ask: Ask) -> tuple[int, Object, list[str]]:
        """HTTP status, document, warnings."""
        if ask.target.verb not in self._verbs:
            raise method_not_allowed()
        options = ask.options()
        code, document = self._verbs[ask.target.verb](ask, options)
        return code, document, options.warnings

    def _get(self, target: Target) -> Object:
        found = self._api.read(target.kind, target.key)
        return scale.read(found) if target.sub == "scale" else self._versioned(target.kind, found)

    def _update(self, ask: Ask, options: Options) -> Object:
        if ask.target.sub == "scale":
            return scale.write(self._api, (ask.target.kind, ask.target.key), ask.body, ask.media, options)
        kind, body = ask.target.kind, _checked(ask.target.kind, ask.body)
        return self._versioned(kind, self._api.update(kind, ask.target.key, body, options, ask.target.sub))

    @staticmethod
    def _versioned(kind: Kind, obj: Object) -> Object:
        """All versions of a custom resource differ in their name alone."""
        return obj if obj["apiVersion"] == kind.api_version else {**obj, "apiVersion": kind.api_version}

    def _list(self, target: Target, query: Mapping[str, str]) -> Object:
        kind = target.kind
        page = self.lists.page(kind, target.namespace, query)
        items = [self._versioned(kind, obj) for obj in page.items]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": page.meta(), "items": items}

    def _create(self, ask: Ask, options: Options) -> Object:
        target, kind, body = ask.target, ask.target.kind, ask.body
        if target.sub == "token":
            return self._token(target, body)
        if target.sub == "eviction":
            return self._evict(target)
        if target.sub == "binding":
            bind(self._api, target.key, body, options.manager)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        _checked(kind, body)
        if kind.plural == "tokenreviews":
            return tokens.review(self._tokens, body)
        if kind.plural.endswith("accessreviews"):
            return rbac.review(self._access, ask.user, body)
        return self._api.create(kind, target.namespace, body, options)

    def _token(self, target: Target, body: Object) -> Object:
        account = self._api.read(target.kind, target.key)
        spec = body.get("spec") or {}
        audiences, seconds = spec.get("audiences") or [], spec.get("expirationSeconds") or 3600
        pod = None
        if bound := spec.get("boundObjectRef"):
            pod = self._api.read(self._api.kinds["pods"], (target.namespace, bound["name"]))
            if bound.get("uid") not in (None, "", pod["metadata"]["uid"]):
                raise bad_request(
                    f"the UID in the bound object reference ({bound['uid']}) does not match the UID in record."
                )
        token = self._tokens.issue(account, audiences, seconds, pod)
        told = {"audiences": audiences or [tokens.AUDIENCE], "expirationSeconds": seconds}
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": target.name, "namespace": target.namespace, "creationTimestamp": timestamp()},
            "spec": {**spec, **told},
            "status": {"token": token, "expirationTimestamp": tokens.expiry(seconds)},
        }

    def _evict(self, target: Target) -> Object:
        evict(self._api, target.key)
        return _success(target.kind, target.name, "")

    def _patch(self, ask: Ask, options: Options) -> tuple[int, Object]:
        target, kind = ask.target, ask.target.kind
        if target.sub == "scale":
            return 200, scale.write(self._api, (kind, target.key), ask.body, ask.media, options)
        is_new = self._api.store.get(kind.id, target.key) is None
        if is_new and ask.media.startswith("application/apply-patch"):
            use = Use("create", kind.group, target.resource, target.namespace)
            self._access.authorize(ask.user, kind, use, "")
        changed = self._api.patch(kind, target.key, ask.body, ask.media, options, sub=target.sub)
        return (201 if is_new else 200), self._versioned(kind, changed)

    def _delete(self, ask: Ask, options: Options) -> Object:
        target, how = ask.target, DeleteOptions.read(ask.body or {}, dict(ask.query))
        if target.kind.id == ("batch", "jobs") and not how.propagation:
            options.warnings.append(_PODS_STAY)
            how = replace(how, propagation=ORPHAN)
        obj, gone = self._api.delete(target.kind, target.key, how)
        if gone and target.kind.plural not in _RETURN_THE_OBJECT:
            return _success(target.kind, target.name, obj["metadata"]["uid"])
        return obj

    def _delete_all(self, ask: Ask) -> Object:
        target, kind, query = ask.target, ask.target.kind, ask.query
        how = DeleteOptions.read(ask.body or {}, dict(query))
        page = self.lists.page(kind, target.namespace, {k: v for k, v in query.items() if k != "limit"})
        items = []
        for obj in page.items:
            key = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
            if self._api.store.get(kind.id, key) is not None:
                items.append(self._api.delete(kind, key, how)[0])
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": page.meta(), "items": items}


def _checked(kind: Kind, body: Any) -> Object:
    """The body says what it is, or nothing; never something else."""
    if not isinstance(body, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {kind.kind})")
    given = dig(body, "apiVersion", default=kind.api_version), dig(body, "kind", default=kind.kind)
    if given != (kind.api_version, kind.kind):
        told = f"({given[0]}, Kind={given[1]}): expected {kind.api_version}, Kind={kind.kind}"
        raise bad_request(f"the object in the request does not match the resource of the path {told}")
    return body


def _success(kind: Kind, name: str, uid: str) -> Object:
    details = {"name": name, "group": kind.group, "kind": kind.plural, "uid": uid}
    told = {key: value for key, value in details.items() if value}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": told}
