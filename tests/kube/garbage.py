"""The garbage collector: dependents go when all their owners are gone, or before them where that was asked for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial

from tests.kube.errors import ApiError
from tests.kube.kinds import Kind
from tests.kube.objects import (
    BACKGROUND,
    FOREGROUND,
    FOREGROUND_FINALIZER,
    ORPHAN_FINALIZER,
    Object,
    finalizers,
    is_deleting,
    key_of,
    owners,
)
from tests.kube.options import DeleteOptions
from tests.kube.store import DELETED, Change
from tests.kube.verbs import Api

_MANAGER = "kube-controller-manager"


class GarbageCollector:
    """Looks again at whatever a change may have set free, a moment later."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._dependents: dict[str, set[str]] = defaultdict(set)  # uid of an owner -> uids
        self._due: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self.active = True
        api.store.listen(self._on_change)

    def _on_change(self, change: Change) -> None:
        uid = change.object["metadata"]["uid"]
        for owner in owners(change.before) if change.before else []:
            self._dependents[owner["uid"]].discard(uid)
        if change.type == DELETED:
            for dependent in self._dependents.pop(uid, ()):
                self._look_at(dependent)
        else:
            for owner in owners(change.object):
                self._dependents[owner["uid"]].add(uid)
            if owners(change.object) and (change.before is None or owners(change.before) != owners(change.object)):
                self._look_at(uid)
        if is_deleting(change.object):
            self._look_at(uid)
        if is_deleting(change.object) or change.type == DELETED:
            for owner in owners(change.object):
                self._look_at(owner["uid"])

    def _look_at(self, uid: str) -> None:
        if not self._due and self.active:
            self._loop.call_soon(self._work)
        self._due.add(uid)

    def resume(self) -> None:
        """Switched on again, it does what it has missed."""
        self.active = True
        self._loop.call_soon(self._work)

    def _work(self) -> None:
        due, self._due = self._due, set()
        if not self.active:
            return
        for uid in due:
            obj, kind_id = self._api.store.by_uid(uid), self._api.store.kind_of_uid(uid)
            if obj is None or kind_id is None:
                continue
            kind = next((each for each in self._api.kinds if each.id == kind_id), None)
            if kind is not None:
                self._attend(kind, obj)

    def _attend(self, kind: Kind, obj: Object) -> None:
        if is_deleting(obj) and FOREGROUND_FINALIZER in finalizers(obj):
            self._delete_dependents_first(kind, obj)
        elif is_deleting(obj) and ORPHAN_FINALIZER in finalizers(obj):
            self._orphan_dependents(kind, obj)
        elif owners(obj) and not is_deleting(obj):
            self._delete_if_abandoned(kind, obj)

    def _delete_if_abandoned(self, kind: Kind, obj: Object) -> None:
        present = [owner for owner in owners(obj) if self._is_there(owner, obj)]
        waited_for = [
            owner
            for owner in present
            if owner.get("blockOwnerDeletion") and self._waits(self._api.store.by_uid(owner["uid"]))
        ]
        if not present:
            self._delete(kind, obj, BACKGROUND)
        elif len(waited_for) == len(present):
            self._delete(kind, obj, FOREGROUND if self._dependents.get(obj["metadata"]["uid"]) else BACKGROUND)
        elif len(present) < len(owners(obj)):
            self._api.change(kind, key_of(obj), lambda new: _keep_owners(new, present), _MANAGER)

    def _is_there(self, owner: Object, dependent: Object) -> bool:
        """An owner in another namespace does not count."""
        found = self._api.store.by_uid(owner["uid"])
        if found is None:
            return False
        where = found["metadata"].get("namespace", "")
        matches = found["metadata"]["name"] == owner["name"] and found["kind"] == owner["kind"]
        return matches and where in ("", dependent["metadata"].get("namespace", ""))

    @staticmethod
    def _waits(owner: Object | None) -> bool:
        return owner is not None and is_deleting(owner) and FOREGROUND_FINALIZER in finalizers(owner)

    def _delete_dependents_first(self, kind: Kind, obj: Object) -> None:
        uid, blocked = obj["metadata"]["uid"], False
        for dependent_uid in list(self._dependents.get(uid, ())):
            dependent, kind_id = self._api.store.by_uid(dependent_uid), self._api.store.kind_of_uid(dependent_uid)
            if dependent is None or kind_id is None:
                continue
            owner = next(each for each in owners(dependent) if each["uid"] == uid)
            blocked |= bool(owner.get("blockOwnerDeletion"))
            self._look_at(dependent_uid)
            if not owner.get("blockOwnerDeletion") and not is_deleting(dependent):
                self._delete(next(each for each in self._api.kinds if each.id == kind_id), dependent, BACKGROUND)
        if not blocked:
            self._drop_finalizer(kind, obj, FOREGROUND_FINALIZER)

    def _orphan_dependents(self, kind: Kind, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        for dependent_uid in list(self._dependents.get(uid, ())):
            dependent, kind_id = self._api.store.by_uid(dependent_uid), self._api.store.kind_of_uid(dependent_uid)
            if dependent is not None:
                kept = [owner for owner in owners(dependent) if owner["uid"] != uid]
                of = next(each for each in self._api.kinds if each.id == kind_id)
                self._api.change(of, key_of(dependent), partial(_keep_owners, kept=kept), _MANAGER)
        self._drop_finalizer(kind, obj, ORPHAN_FINALIZER)

    def _delete(self, kind: Kind, obj: Object, propagation: str) -> None:
        how = DeleteOptions(propagation=propagation, uid=obj["metadata"]["uid"])
        try:
            self._api.delete(kind, key_of(obj), how)
        except ApiError:
            self._look_at(obj["metadata"]["uid"])

    def _drop_finalizer(self, kind: Kind, obj: Object, name: str) -> None:
        def edit(new: Object) -> None:
            new["metadata"]["finalizers"] = [each for each in finalizers(new) if each != name]

        self._api.change(kind, key_of(obj), edit, _MANAGER)


def _keep_owners(new: Object, kept: list[Object]) -> None:
    new["metadata"].pop("ownerReferences", None)
    if kept:
        new["metadata"]["ownerReferences"] = kept
