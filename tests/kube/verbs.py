"""What the API does: create, update, patch and delete, each one step that nothing else comes between."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Any

from tests.kube import deletion, ownership, patching
from tests.kube.admission import Admission
from tests.kube.errors import (
    Cause,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    no_such_path,
    not_found,
)
from tests.kube.kinds import Kind, Kinds
from tests.kube.objects import Key, Object, copy, finalizers, is_deleting, timestamp
from tests.kube.options import DeleteOptions, Options
from tests.kube.store import Store

SERVERS_OWN = (
    "uid",
    "creationTimestamp",
    "name",
    "namespace",
    "generation",
    "managedFields",
    "selfLink",
    "generateName",
)
DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds")


class Api:
    """The verbs over one store. HTTP and the controllers both come through here."""

    def __init__(self) -> None:
        self.store = Store()
        self.kinds = Kinds()
        self.admission = Admission(self)

    def read(self, kind: Kind, key: Key) -> Object:
        found = self.store.get(kind.id, key)
        if found is None:
            raise not_found(kind, key[1])
        return found

    def create(self, kind: Kind, namespace: str, body: Object, options: Options | None = None) -> Object:
        options = options or Options()
        obj = self._identified(kind, namespace, body)
        name = obj["metadata"]["name"]
        self._check_namespace(kind, namespace, name)
        if kind.status:
            obj.pop("status", None)
        obj = self.admission.shaped(kind, obj, None, options)
        self.admission.check(kind, obj, None)
        if self.store.get(kind.id, (namespace, name)) is not None:
            raise already_exists(kind, name)
        ownership.track(None, obj, kind.structure, options.manager, "")
        return obj if options.dry_run else self.store.put(kind, obj)

    def _identified(self, kind: Kind, namespace: str, body: Object) -> Object:
        obj = copy(body)
        meta = obj.setdefault("metadata", {})
        if meta.get("namespace", namespace) != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if meta.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise invalid(kind, "", [Cause("metadata.name", "Required value: name or generateName is required")])
            meta["name"] = meta["generateName"][:58] + suffix()
        for name in (*DELETION, "managedFields", "selfLink", "resourceVersion", "generation"):
            meta.pop(name, None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
        if namespace:
            meta["namespace"] = namespace
        if kind.counts or kind.custom:
            meta["generation"] = 1
        return {"apiVersion": kind.api_version, "kind": kind.kind, **obj}

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        namespaces = self.kinds["namespaces"]
        if is_deleting(self.read(namespaces, ("", namespace))):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause("metadata.namespace", f"namespace {namespace} is being terminated", "NamespaceTerminating")
            raise forbidden(kind, name, why, [cause])

    def update(self, kind: Kind, key: Key, body: Object, options: Options | None = None, sub: str = "") -> Object:
        """PUT: the object as it is to be."""
        old = self.read(kind, key)
        new = copy(body)
        new.setdefault("metadata", {})
        if new["metadata"].get("name") != key[1]:
            given = new["metadata"].get("name", "")
            raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({key[1]})")
        if kind.custom and not new["metadata"].get("resourceVersion"):
            why = "Invalid value: 0: must be specified for an update"
            raise invalid(kind, key[1], [Cause("metadata.resourceVersion", why)])
        return self._replace(kind, old, new, options or Options(), sub=sub)

    def patch(self, kind: Kind, key: Key, patch: Any, media: str, options: Options, *, sub: str = "") -> Object:
        if media == patching.APPLY:
            return self._apply(kind, key, patch, options, sub)
        old = self.read(kind, key)
        if media == patching.JSON:
            new = patching.json_patch(old, patch)
        elif media == patching.MERGE:
            new = patching.merge_patch(old, patch)
        else:
            new = patching.strategic_merge(old, patch, kind.structure)
        return self._replace(kind, old, copy(new), options, sub=sub)

    def change(self, kind: Kind, key: Key, edit: Callable[[Object], None], manager: str, sub: str = "") -> Object:
        """For controllers: `edit` changes a copy of the object as it is now."""
        new = copy(self.read(kind, key))
        edit(new)
        return self._replace(kind, self.read(kind, key), new, Options(manager=manager), sub=sub)

    def delete(self, kind: Kind, key: Key, how: DeleteOptions | None = None) -> tuple[Object, bool]:
        """The object at last, and whether it is gone."""
        return deletion.delete(self.store, kind, self.read(kind, key), how or DeleteOptions())

    def _apply(self, kind: Kind, key: Key, given: Object, options: Options, sub: str) -> Object:
        if not isinstance(given, dict) or (given.get("apiVersion"), given.get("kind")) != (kind.api_version, kind.kind):
            raise bad_request("the apiVersion and kind of the applied object must be those of the request")
        if given.get("metadata", {}).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        live = self.store.get(kind.id, key)
        wanted = self.admission.typed(kind, self._part(kind, given, sub))
        if live is None:
            if sub:
                raise not_found(kind, key[1])
            return self._create_applied(kind, key, wanted, options)
        new = ownership.apply(live, wanted, kind.structure, (options.manager, sub), options.force)
        if (version := given["metadata"].get("resourceVersion")) is not None:
            new["metadata"]["resourceVersion"] = version
        return self._replace(kind, live, copy(new), options, sub=sub, applied=True)

    @staticmethod
    def _part(kind: Kind, given: Object, sub: str) -> Object:
        """What of an applied object the path is for."""
        if sub == "status":
            return {name: value for name, value in given.items() if name not in ("spec",)}
        return {name: value for name, value in given.items() if name != "status" or not kind.status}

    def _create_applied(self, kind: Kind, key: Key, given: Object, options: Options) -> Object:
        body = copy(given)
        body["metadata"] = {**body.get("metadata", {}), "name": key[1]}
        obj = self.create(kind, key[0], body, Options(options.manager, "Ignore", dry_run=True))
        obj["metadata"].pop("managedFields", None)
        obj = ownership.apply(obj, given, kind.structure, (options.manager, ""), False)
        return obj if options.dry_run else self.store.put(kind, obj)

    def _replace(
        self, kind: Kind, old: Object, new: Object, options: Options, *, sub: str, applied: bool = False
    ) -> Object:
        """Puts `new` in place of `old`, as far as the path lets it."""
        self._check_preconditions(kind, old, new)
        new = self._within(kind, old, new, sub)
        new = self.admission.shaped(kind, new, old, options)
        self.admission.check(kind, new, old, sub)
        if _same(old, new) and (not applied or _owners(old) == _owners(new)):
            return old
        _check_finalizers(kind, old, new)
        if "generation" in old["metadata"] and _spec_differs(kind, old, new):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if not applied:
            ownership.track(old, new, kind.structure, options.manager, sub)
        if options.dry_run:
            return new
        return deletion.settle(self.store, kind, new)

    def _check_preconditions(self, kind: Kind, old: Object, new: Object) -> None:
        given, held = new["metadata"], old["metadata"]
        if given.get("resourceVersion") not in (None, "", held["resourceVersion"]):
            raise conflict(kind, held["name"])
        if given.get("uid") not in (None, "", held["uid"]):
            why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {held['uid']}"
            raise conflict(kind, held["name"], why)

    def _within(self, kind: Kind, old: Object, new: Object, sub: str) -> Object:
        """Of the new object, the part that this path may write; the rest as it was."""
        if sub == "status" and not kind.status:
            raise no_such_path()
        if sub == "status":
            result = {name: value for name, value in old.items() if name != "status"}
            if "status" in new:
                result["status"] = new["status"]
            result["metadata"] = dict(old["metadata"])
            result["metadata"]["managedFields"] = new["metadata"].get("managedFields", [])
        else:
            result = {**new, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": dict(new["metadata"])}
            if kind.status:
                result.pop("status", None)
                result |= {"status": old["status"]} if "status" in old else {}
        return self._with_servers_fields(old, result)

    @staticmethod
    def _with_servers_fields(old: Object, new: Object) -> Object:
        """Nobody changes what the server alone writes."""
        held, given = old["metadata"], new["metadata"]
        managed = given.get("managedFields")
        for name in (*SERVERS_OWN, *DELETION, "resourceVersion"):
            given.pop(name, None)
            if name in held:
                given[name] = held[name]
        if managed:
            given["managedFields"] = managed
        return {"apiVersion": new.pop("apiVersion"), "kind": new.pop("kind"), **new}


def suffix() -> str:
    """Five characters, as generated names end with."""
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


def _bare(obj: Object) -> Object:
    meta = {key: value for key, value in obj["metadata"].items() if key not in ("managedFields", "resourceVersion")}
    return {**obj, "metadata": meta}


def _same(old: Object, new: Object) -> bool:
    return _bare(old) == _bare(new)


def _owners(obj: Object) -> list[tuple[Any, ...]]:
    return [(one["manager"], one["operation"], one["fieldsV1"]) for one in obj["metadata"].get("managedFields") or []]


def _spec_differs(kind: Kind, old: Object, new: Object) -> bool:
    left_out = {"metadata", "status"} if kind.status else {"metadata"}
    names = {*old, *new} - left_out
    return any(old.get(name) != new.get(name) for name in names)


def _check_finalizers(kind: Kind, old: Object, new: Object) -> None:
    """What is being deleted takes no more of them."""
    added = set(finalizers(new)) - set(finalizers(old))
    if is_deleting(old) and added:
        listed = ", ".join(f'"{each}"' for each in sorted(added))
        why = "no new finalizers can be added if the object is being deleted, found new finalizers"
        cause = Cause("metadata.finalizers", f"Forbidden: {why} []string{{{listed}}}", "FieldValueForbidden")
        raise invalid(kind, old["metadata"]["name"], [cause])
