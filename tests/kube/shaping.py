"""What becomes of an object on its way in: fields nobody knows are dropped, missing ones get their default."""

from __future__ import annotations

from typing import Any

from tests.kube.objects import Object, copy
from tests.kube.structure import ANYTHING, Structure, object_meta


def prune(value: Any, structure: Structure, path: str, unknown: list[str]) -> Any:
    """`value` without unknown fields, whose paths are added to `unknown`, and without nulls that mean nothing."""
    if isinstance(value, dict) and structure is not ANYTHING:
        return _pruned_map(value, structure, path, unknown)
    if isinstance(value, list) and structure is not ANYTHING:
        return [prune(item, structure.items, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    return value


def _pruned_map(value: Object, structure: Structure, path: str, unknown: list[str]) -> Object:
    kept: Object = {}
    for name, inner in value.items():
        where = f"{path}.{name}" if path else name
        child = structure.child(name)
        if child is None:
            unknown.append(where)
        elif inner is not None or child.nullable or child is ANYTHING:
            kept[name] = prune(inner, child, where, unknown)
    return _embedded(value, kept) if structure.raw.get("x-kubernetes-embedded-resource") else kept


def _embedded(value: Object, kept: Object) -> Object:
    return {**{name: value[name] for name in ("apiVersion", "kind", "metadata") if name in value}, **kept}


def set_defaults(value: Any, structure: Structure) -> None:
    """In place. A default is given where the field is absent, not where it is empty."""
    if isinstance(value, list):
        for item in value:
            set_defaults(item, structure.items)
    elif isinstance(value, dict):
        for name, child in structure.properties.items():
            if child is object_meta():
                continue
            if name not in value and "default" in child.raw:
                value[name] = copy(child.raw["default"])
        for name, inner in value.items():
            child_of = structure.child(name)
            if child_of is not None and child_of is not ANYTHING and child_of is not object_meta():
                set_defaults(inner, child_of)
