"""Which fields an object has, as paths, and the `fieldsV1` form in which managed fields write them down.

A path is made of `f:name` for a field, `k:{"name":"x"}` for the item of a list that has keys and `v:"x"` for a member
of a set. Where a list or map merges is for its schema to say; everything else is one leaf.
"""

from __future__ import annotations

import json
from typing import Any

from tests.kube.objects import Object
from tests.kube.structure import ANYTHING, Structure

Path = tuple[str, ...]
Leaves = dict[Path, Any]
_ITEM = object()  # what stands for "this item is in the list"


def leaves(value: Any, structure: Structure, path: Path = ()) -> Leaves:
    """Every leaf at and below `path`, with its value."""
    if isinstance(value, dict) and value and not structure.is_atomic:
        found: Leaves = {}
        for name, inner in value.items():
            found |= leaves(inner, structure.child(name) or ANYTHING, (*path, f"f:{name}"))
        return found
    if isinstance(value, list) and value and structure.list_type in ("map", "set"):
        found = {}
        for item in value:
            step = (*path, step_of(item, structure))
            found[step] = _ITEM
            if structure.list_type == "map":
                found |= leaves(item, structure.items, step)
        return found
    return {path: value}


def step_of(item: Any, structure: Structure) -> str:
    if structure.list_type == "set":
        return f"v:{json.dumps(item)}"
    keys = dict(zip(structure.list_keys, structure.item_key(item), strict=True))
    return f"k:{json.dumps(keys, separators=(',', ':'), sort_keys=True)}"


def is_item(value: Any) -> bool:
    return value is _ITEM


def encode(paths: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    _mark(tree, (), paths)
    return tree


def _mark(node: Object, path: Path, paths: set[Path]) -> None:
    for step, inner in node.items():
        _mark(inner, (*path, step), paths)
    if node and path in paths:
        node["."] = {}


def decode(node: Object, path: Path = ()) -> set[Path]:
    found = {path} if path and ("." in node or not node) else set()
    for step, inner in node.items():
        if step != ".":
            found |= decode(inner, (*path, step))
    return found


def shown(path: Path) -> str:
    """As conflicts name it: `.spec.stages[name="a"].type`."""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items()) + "]"
        else:
            text += f"[={rest}]"
    return text


def without(value: Any, path: Path, structure: Structure) -> Any:
    """`value` less what is at `path`; the same value if there is nothing."""
    step, rest = path[0], path[1:]
    name = step.partition(":")[2]
    if isinstance(value, dict) and step.startswith("f:"):
        if name not in value:
            return value
        if not rest:
            return {key: inner for key, inner in value.items() if key != name}
        return value | {name: without(value[name], rest, structure.child(name) or ANYTHING)}
    if isinstance(value, list):
        kept = []
        for item in value:
            if step_of(item, structure) != step:
                kept.append(item)
            elif rest:
                kept.append(without(item, rest, structure.items))
        return kept
    return value
