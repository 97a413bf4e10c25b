"""Lists in pages, and watches: what was, then what happens, each as its selectors let it be seen."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from tests.kube.errors import ApiError, bad_request, expired
from tests.kube.kinds import Kind
from tests.kube.objects import Object
from tests.kube.selectors import Test, object_test
from tests.kube.store import ADDED, DELETED, MODIFIED, Change, Store

BOOKMARK_SECONDS = 60.0
_PAGES_KEPT = 200


@dataclass(frozen=True)
class Page:
    items: list[Object]
    version: str
    proceed: str = ""
    remaining: int = 0

    def meta(self) -> Object:
        told: Object = {"resourceVersion": self.version}
        if self.proceed:
            told["continue"] = self.proceed
        return told | ({"remainingItemCount": self.remaining} if self.remaining else {})


class Lists:
    """Remembers where lists were left off, so that all pages show the same moment."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rest: OrderedDict[str, Page] = OrderedDict()

    def page(self, kind: Kind, namespace: str, query: Mapping[str, str], name: str = "") -> Page:
        limit = int(query.get("limit") or 0)
        if token := query.get("continue"):
            page = self._rest.get(token)
            if page is None:
                raise expired("The provided continue parameter is too old to display a consistent list result.")
        else:
            page = Page(self._matching(kind, namespace, query, name), str(self._store.version))
        selects = bool(query.get("labelSelector") or query.get("fieldSelector"))
        if not limit or len(page.items) <= limit:
            return Page(page.items, page.version)
        token = secrets.token_urlsafe(12)
        self._rest[token] = Page(page.items[limit:], page.version)
        while len(self._rest) > _PAGES_KEPT:
            self._rest.popitem(last=False)
        return Page(page.items[:limit], page.version, token, 0 if selects else len(page.items) - limit)

    def _matching(self, kind: Kind, namespace: str, query: Mapping[str, str], name: str) -> list[Object]:
        test = test_of(kind, query)
        found = self._store.listed(kind.id, namespace or None)
        return [obj for obj in found if test(obj) and name in ("", obj["metadata"]["name"])]

    def forget(self) -> None:
        self._rest.clear()


def test_of(kind: Kind, query: Mapping[str, str]) -> Test:
    return object_test(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))


class Watch:
    """One open watch: events come out of `events` until its time is over."""

    def __init__(self, store: Store, kind: Kind, namespace: str, query: Mapping[str, str], name: str = "") -> None:
        self._store, self._kind, self._namespace, self._name = store, kind, namespace, name
        self._test = test_of(kind, query)
        self._bookmarks = query.get("allowWatchBookmarks", "").lower() in ("1", "true")
        self._initial = query.get("sendInitialEvents", "").lower() in ("1", "true")
        self._since = query.get("resourceVersion", "")
        self._seconds = float(query.get("timeoutSeconds") or 1800)
        self._queue: asyncio.Queue[Change] = asyncio.Queue()

    async def events(self) -> AsyncIterator[tuple[str, Object]]:
        """Type and object. History that is gone comes as an ERROR event, as from the real server."""
        end = self._store.listen(self._queue.put_nowait, self._kind.id)
        try:
            try:
                started = self._started()
            except ApiError as error:
                yield "ERROR", error.body()
                return
            for event in started:
                yield event
            async for event in self._following():
                yield event
        finally:
            end()

    def _started(self) -> list[tuple[str, Object]]:
        """What there is to tell before anything happens."""
        fresh = self._since in ("", "0") or self._initial
        if not fresh:
            if not self._since.isdigit():
                raise bad_request(f'invalid resource version "{self._since}"')
            changes = self._store.since(self._kind.id, int(self._since))
            return [event for change in changes if (event := self._seen(change))]
        shown = [(ADDED, obj) for obj in self._store.listed(self._kind.id, self._namespace or None) if self._shows(obj)]
        if self._initial and self._bookmarks:
            shown.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
        return shown

    async def _following(self) -> AsyncIterator[tuple[str, Object]]:
        loop = asyncio.get_running_loop()
        end, bookmark = loop.time() + self._seconds, loop.time() + BOOKMARK_SECONDS
        while (left := end - loop.time()) > 0:
            wait = min(left, bookmark - loop.time()) if self._bookmarks else left
            try:
                async with asyncio.timeout(max(wait, 0)):
                    change = await self._queue.get()
            except TimeoutError:
                if self._bookmarks:
                    bookmark = loop.time() + BOOKMARK_SECONDS
                    yield self._bookmark({})
                continue
            if event := self._seen(change):
                yield event

    def _bookmark(self, annotations: dict[str, str]) -> tuple[str, Object]:
        meta: Object = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        return "BOOKMARK", {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": meta}

    def _shows(self, obj: Object) -> bool:
        meta = obj["metadata"]
        inside = self._namespace in ("", meta.get("namespace", "")) and self._name in ("", meta["name"])
        return inside and self._test(obj)

    def _seen(self, change: Change) -> tuple[str, Object] | None:
        """An object that stops to match is, for this watch, deleted; one that begins to is added."""
        now = self._shows(change.object)
        before = change.before is not None and self._shows(change.before)
        if change.type == DELETED:
            return (DELETED, change.object) if before or now else None
        if now:
            return (MODIFIED if before else ADDED), change.object
        if not before or change.before is None:
            return None
        version = change.object["metadata"]["resourceVersion"]
        return DELETED, {**change.before, "metadata": {**change.before["metadata"], "resourceVersion": version}}
