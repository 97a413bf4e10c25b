"""A namespace that is deleted takes all that is in it, and goes when nothing is left; a new one gets its account."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig, is_deleting, key_of
from tests.kube.store import ADDED, DELETED, Change
from tests.kube.verbs import Api

_MANAGER = "kube-controller-manager"


class Namespaces:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._kind = api.kinds["namespaces"]
        self._loop = asyncio.get_running_loop()
        api.store.listen(self._on_change)

    def _on_change(self, change: Change) -> None:
        if change.kind == self._kind.id:
            name = change.object["metadata"]["name"]
            if change.type == ADDED:
                self._give_account(name)
            elif change.type != DELETED and is_deleting(change.object):
                self._loop.call_soon(self._empty, name)
        elif change.type == DELETED and (name := change.object["metadata"].get("namespace")):
            namespace = self._api.store.get(self._kind.id, ("", name))
            if namespace is not None and is_deleting(namespace):
                self._loop.call_soon(self._empty, name)

    def _give_account(self, name: str) -> None:
        accounts = self._api.kinds["serviceaccounts"]
        if self._api.store.get(accounts.id, (name, "default")) is None:
            self._api.create(accounts, name, {"metadata": {"name": "default"}})

    def _empty(self, name: str) -> None:
        namespace = self._api.store.get(self._kind.id, ("", name))
        if namespace is None or not is_deleting(namespace):
            return
        for kind, obj in self._content(name):
            if not is_deleting(obj) and self._api.store.get(kind.id, key_of(obj)) is not None:
                self._api.delete(kind, key_of(obj))
        if not any(True for _ in self._content(name)) and dig(namespace, "spec", "finalizers"):
            self._api.change(self._kind, ("", name), _finalized, _MANAGER)

    def _content(self, name: str) -> Iterator[tuple[Kind, Object]]:
        seen = set()
        for kind in self._api.kinds:
            if kind.namespaced and kind.stores and kind.id not in seen:
                seen.add(kind.id)
                for obj in self._api.store.listed(kind.id, name):
                    yield kind, obj


def _finalized(namespace: Object) -> None:
    namespace["spec"] = {"finalizers": []}
