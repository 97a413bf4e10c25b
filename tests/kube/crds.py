"""Makes CustomResourceDefinitions into kinds that are served, says so in their status, and clears up after them."""

from __future__ import annotations

import asyncio

from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig, finalizers, is_deleting, is_true, key_of, with_condition
from tests.kube.store import DELETED, Change
from tests.kube.structure import custom
from tests.kube.verbs import Api

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_MANAGER = "kube-apiserver"
_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


class CustomResources:
    """Follows the definitions. A new one is served a moment after its creation, as in a real cluster."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._definitions = api.kinds["customresourcedefinitions.apiextensions.k8s.io"]
        self._loop = asyncio.get_running_loop()
        api.store.listen(self._on_definition, self._definitions.id)
        api.store.listen(self._on_any)

    def _on_definition(self, change: Change) -> None:
        spec = change.object["spec"]
        if change.type == DELETED:
            self._api.kinds.remove(spec["group"], spec["names"]["plural"])
        elif change.before is None or change.before["spec"] != spec or is_deleting(change.object):
            self._loop.call_soon(self._sync, change.object["metadata"]["name"])

    def _on_any(self, change: Change) -> None:
        """The last resource of a definition that is being deleted has gone."""
        if change.type == DELETED and change.kind[0]:
            name = f"{change.kind[1]}.{change.kind[0]}"
            definition = self._api.store.get(self._definitions.id, ("", name))
            if definition is not None and is_deleting(definition):
                self._loop.call_soon(self._sync, name)

    def _sync(self, name: str) -> None:
        definition = self._api.store.get(self._definitions.id, ("", name))
        if definition is None:
            return
        if is_deleting(definition):
            self._clean_up(definition)
            return
        for kind in kinds_of(definition):
            self._api.kinds.add(kind)
        if not is_true(definition, "Established"):
            self._api.change(self._definitions, ("", name), _established, _MANAGER, "status")
            self._api.change(self._definitions, ("", name), _with_cleanup, _MANAGER)

    def _clean_up(self, definition: Object) -> None:
        spec = definition["spec"]
        kind = next(iter(kinds_of(definition)))
        for obj in self._api.store.listed(kind.id):
            if not is_deleting(obj):
                self._api.delete(kind, key_of(obj))
        left = self._api.store.listed((spec["group"], spec["names"]["plural"]))
        if not left and CLEANUP in finalizers(definition):
            self._api.change(self._definitions, key_of(definition), _without_cleanup, _MANAGER)


def _established(definition: Object) -> None:
    status = definition.setdefault("status", {})
    status["acceptedNames"] = definition["spec"]["names"]
    with_condition(status, "NamesAccepted", "True", "NoConflicts", "no conflicts found")
    with_condition(status, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted")


def _with_cleanup(definition: Object) -> None:
    held = finalizers(definition)
    definition["metadata"]["finalizers"] = [*held, *([CLEANUP] if CLEANUP not in held else [])]


def _without_cleanup(definition: Object) -> None:
    definition["metadata"]["finalizers"] = [each for each in finalizers(definition) if each != CLEANUP]


def kinds_of(definition: Object) -> list[Kind]:
    """A kind for each version that is served, the stored one first."""
    spec = definition["spec"]
    names, versions = spec["names"], sorted(spec["versions"], key=lambda version: not version["storage"])
    return [
        Kind(
            group=spec["group"],
            version=version["name"],
            kind=names["kind"],
            plural=names["plural"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            status="status" in dig(version, "subresources", default={}),
            counts=True,
            structure=custom(dig(version, "schema", "openAPIV3Schema", default={})),
            columns=tuple(version.get("additionalPrinterColumns") or (_AGE,)),
            custom=True,
        )
        for version in versions
        if version["served"]
    ]
