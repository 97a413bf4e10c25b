"""Structural schemas: the tree that says what an object may hold and how its lists merge.

Custom resources bring theirs in the CRD. Those of built-in kinds come from the OpenAPI definitions of Kubernetes that
the package kubernetes-validate carries, so that lists merge by the real keys and unknown fields are known to be so.
"""

from __future__ import annotations

import json
from functools import cache, cached_property
from importlib import resources
from typing import Any

from tests.kube.objects import Object

VERSION = "1.36"
REF = "#/$defs/"


@cache
def definitions() -> dict[str, Object]:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local"
    text = (folder / "_definitions.json").read_text(encoding="utf-8")
    found: dict[str, Object] = json.loads(text)["$defs"]
    return found


@cache
def _names() -> dict[tuple[str, str, str], str]:
    """Which definition is of which group, version and kind."""
    marker = "x-kubernetes-group-version-kind"
    return {
        (each["group"], each["version"], each["kind"]): name
        for name, definition in definitions().items()
        for each in definition.get(marker, ())
        if len(definition[marker]) == 1
    }


def definition_name(group: str, version: str, kind: str) -> str:
    return _names()[group, version, kind]


def _resolved(raw: Object) -> Object:
    """Follows references, which only the definitions of built-in kinds have; there an object without fields is any."""
    refers = "$ref" in raw
    while "$ref" in raw:
        name = raw["$ref"].rpartition("/")[2]
        raw = {**definitions()[name], **{key: value for key, value in raw.items() if key != "$ref"}}
    if refers and "properties" not in raw and "additionalProperties" not in raw:
        return {**raw, "x-kubernetes-preserve-unknown-fields": True}
    return raw


class Structure:
    """One node. Children are made when asked for: some definitions contain themselves."""

    def __init__(self, raw: Object) -> None:
        self.raw = _resolved(raw)

    @cached_property
    def type(self) -> str:
        """Empty means anything."""
        given = self.raw.get("type", "")
        if isinstance(given, list):  # the definitions of built-in kinds say ["string", "null"]
            given = next(each for each in given if each != "null")
        return str(given)

    @cached_property
    def nullable(self) -> bool:
        return bool(self.raw.get("nullable"))

    @cached_property
    def int_or_string(self) -> bool:
        return bool(self.raw.get("x-kubernetes-int-or-string"))

    @cached_property
    def keeps_unknown(self) -> bool:
        raw = self.raw
        return bool(raw.get("x-kubernetes-preserve-unknown-fields") or not ("properties" in raw or self.type))

    @cached_property
    def properties(self) -> dict[str, Structure]:
        return {name: Structure(raw) for name, raw in self.raw.get("properties", {}).items()}

    @cached_property
    def additional(self) -> Structure | None:
        raw = self.raw.get("additionalProperties")
        return Structure(raw if isinstance(raw, dict) else {}) if raw else None

    @cached_property
    def items(self) -> Structure:
        return Structure(self.raw.get("items", {}))

    def child(self, name: str) -> Structure | None:
        """The field of that name; None where there must be none."""
        return self.properties.get(name) or self.additional or (ANYTHING if self.keeps_unknown else None)

    @cached_property
    def list_type(self) -> str:
        return str(self.raw.get("x-kubernetes-list-type", "atomic"))

    @cached_property
    def list_keys(self) -> tuple[str, ...]:
        return tuple(self.raw.get("x-kubernetes-list-map-keys", ()))

    @cached_property
    def is_atomic(self) -> bool:
        """A map that one manager owns as a whole."""
        return self.raw.get("x-kubernetes-map-type") == "atomic"

    @cached_property
    def patch_key(self) -> str:
        """By which field a strategic merge patch joins the items of this list; "" if it replaces the list."""
        return str(self.raw.get("x-kubernetes-patch-merge-key", "")) if self.merges else ""

    @cached_property
    def merges(self) -> bool:
        return "merge" in self.raw.get("x-kubernetes-patch-strategy", "").split(",")

    def item_key(self, item: Any) -> tuple[Any, ...]:
        """What tells items of a list of maps apart; keys that have a default may be left out."""
        return tuple(item.get(key, self.items.default_of(key)) for key in self.list_keys)

    def default_of(self, name: str) -> Any:
        child = self.properties.get(name)
        default = child.raw.get("default") if child else None
        return "TCP" if default is None and name == "protocol" else default


ANYTHING = Structure({})


@cache
def built_in(group: str, version: str, kind: str) -> Structure:
    return Structure(definitions()[definition_name(group, version, kind)])


@cache
def object_meta() -> Structure:
    return Structure(definitions()["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"])


def custom(raw: Object) -> Structure:
    """The schema of a custom resource, with the fields that every object has."""
    own = dict(raw.get("properties", {}))
    common = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    structure = Structure({**raw, "type": "object", "properties": {**own, **common}})
    structure.properties["metadata"] = object_meta()
    return structure
