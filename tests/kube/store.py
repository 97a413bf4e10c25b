"""The memory of the cluster: objects, one counter of versions, and the history that watches replay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.kube.errors import expired
from tests.kube.kinds import Kind
from tests.kube.objects import Key, Object, key_of

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
Id = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """Something happened to an object. `before` is what it was; `object` of a deletion is what it was at last."""

    version: int
    type: str
    kind: Id
    object: Object
    before: Object | None = None


Listener = Callable[[Change], None]


class Store:
    """Objects by kind and key. Every write takes the next version; whoever listens is told at once."""

    def __init__(self) -> None:
        self.version = 1000
        self._objects: dict[Id, dict[Key, Object]] = {}
        self._by_uid: dict[str, tuple[Id, Key]] = {}
        self._history: list[Change] = []
        self._compacted = self.version
        self._listeners: dict[int, tuple[Id | None, Listener]] = {}
        self._numbers = itertools.count()

    def get(self, kind: Id, key: Key) -> Object | None:
        return self._objects.get(kind, {}).get(key)

    def by_uid(self, uid: str) -> Object | None:
        place = self._by_uid.get(uid)
        return self.get(*place) if place else None

    def kind_of_uid(self, uid: str) -> Id | None:
        place = self._by_uid.get(uid)
        return place[0] if place else None

    def listed(self, kind: Id, namespace: str | None = None) -> list[Object]:
        """In the order of namespace and name, as the real one lists."""
        found = self._objects.get(kind, {})
        return [found[key] for key in sorted(found) if namespace in (None, key[0])]

    def everything(self) -> Iterator[tuple[Id, Object]]:
        for kind, objects in list(self._objects.items()):
            for obj in list(objects.values()):
                yield kind, obj

    def put(self, kind: Kind, obj: Object) -> Object:
        """Adds or replaces; `obj` belongs to the store from now on."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        objects, key = self._objects.setdefault(kind.id, {}), key_of(obj)
        before = objects.get(key)
        objects[key] = obj
        self._by_uid[obj["metadata"]["uid"]] = kind.id, key
        self._tell(Change(self.version, MODIFIED if before else ADDED, kind.id, obj, before))
        return obj

    def remove(self, kind: Kind, obj: Object) -> Object:
        """The last state gets the version of the deletion, as watchers see it."""
        self.version += 1
        before = self._objects[kind.id].pop(key_of(obj))
        self._by_uid.pop(obj["metadata"]["uid"], None)
        last = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self._tell(Change(self.version, DELETED, kind.id, last, before))
        return last

    def drop_kind(self, kind: Id) -> None:
        self._objects.pop(kind, None)

    def since(self, kind: Id, version: int) -> list[Change]:
        """What happened after `version`; 410 if that is no longer known."""
        if version < self._compacted:
            raise expired(f"too old resource version: {version} ({self._compacted})")
        return [change for change in self._history if change.version > version and change.kind == kind]

    def compact(self) -> None:
        """Forgets the history, as etcd does every five minutes."""
        self._history.clear()
        self.version += 1  # so that nobody's last version is still good
        self._compacted = self.version

    def listen(self, listener: Listener, kind: Id | None = None) -> Callable[[], None]:
        """`listener` hears of every change (of one kind); the function that comes back ends it."""
        number = next(self._numbers)
        self._listeners[number] = kind, listener
        return lambda: self._listeners.pop(number, None) and None

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        for kind, listener in list(self._listeners.values()):
            if kind in (None, change.kind):
                listener(change)
