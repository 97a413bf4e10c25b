"""Objects as the rows of a table, which is what `kubectl get` shows."""

from __future__ import annotations

from typing import Any

from tests.kube import columns, jsonpath
from tests.kube.columns import Column
from tests.kube.kinds import Kind
from tests.kube.objects import Object


def are_asked(accept: str) -> bool:
    """Tables are the first thing this client takes."""
    first = accept.partition(",")[0].replace(" ", "")
    return "as=Table" in first


def table(kind: Kind, document: Object, include: str) -> Object:
    """A list or an object as a table; a Status stays what it is."""
    if document.get("kind") == "Status" or not kind.stores:
        return document
    items = document.get("items", [document])
    return _table(kind, items, document["metadata"], include)


def row_event(kind: Kind, obj: Object, include: str) -> Object:
    """What a watch tells of one object; a bookmark has no row."""
    items = [obj] if "uid" in obj["metadata"] else []
    return _table(kind, items, {"resourceVersion": obj["metadata"]["resourceVersion"]}, include)


def _table(kind: Kind, items: list[Object], meta: Object, include: str) -> Object:
    shown = _columns_of(kind)
    known = ("resourceVersion", "continue", "remainingItemCount")
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {key: value for key, value in meta.items() if key in known},
        "columnDefinitions": [column.definition() for column in shown],
        "rows": [{"cells": [column.cell(obj) for column in shown], **_object(obj, include)} for obj in items],
    }


def _object(obj: Object, include: str) -> Object:
    if include == "None":
        return {}
    if include == "Object":
        return {"object": obj}
    meta = obj["metadata"]
    return {"object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}}


def _columns_of(kind: Kind) -> list[Column]:
    if not kind.custom:
        return columns.BUILT_IN.get(kind.plural, columns.GENERIC)
    return [columns.NAME, *(_printed(column) for column in kind.columns)]


def _printed(column: Object) -> Column:
    path, kind = column["jsonPath"], column["type"]
    what = f"Custom resource definition column (in JSONPath format): {path}"
    description = column.get("description") or what
    return Column(
        column["name"],
        lambda obj: _cell(jsonpath.find(obj, path), kind),
        column.get("priority", 0),
        kind,
        column.get("format", ""),
        description,
    )


def _cell(values: list[Any], kind: str) -> Any:
    if not values:
        return None
    if kind == "date":
        return columns.since(str(values[0]))
    if kind == "string":
        return ",".join(_text(value) for value in values)
    return values[0]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
