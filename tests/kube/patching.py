"""Three of the four ways to patch: JSON patch, merge patch, strategic merge patch. The fourth is server-side apply."""

from __future__ import annotations

from typing import Any

from tests.kube.errors import ApiError, bad_request
from tests.kube.objects import Object, copy
from tests.kube.structure import ANYTHING, Structure

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(target: Object, operations: list[Object]) -> Object:
    """RFC 6902. A test that fails, and a path that is not there, refuse the whole patch."""
    document: Any = copy(target)
    for operation in operations:
        try:
            document = _operated(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(
                422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
            ) from error
    patched: Object = document
    return patched


def _operated(document: Any, operation: Object) -> Any:
    name, path = operation["op"], _pointer(operation["path"])
    if name == "test":
        if _at(document, path) != operation.get("value"):
            raise ValueError(f"testing value {operation['path']} failed")
        return document
    if name in ("move", "copy"):
        value = copy(_at(document, _pointer(operation["from"])))
        if name == "move":
            document = _without(document, _pointer(operation["from"]))
        return _with(document, path, value)
    if name == "remove":
        return _without(document, path)
    if name == "replace":
        _at(document, path)
        return _with(_without(document, path) if path else document, path, copy(operation["value"]))
    if name == "add":
        return _with(document, path, copy(operation["value"]))
    raise ValueError(f"unexpected kind: {name}")


def _pointer(text: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


def _at(document: Any, path: list[str]) -> Any:
    for step in path:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _with(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _at(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if index > len(parent):
            raise IndexError(f"index {index} is out of bounds")
        parent.insert(index, value)
    else:
        parent[last] = value
    return document


def _without(document: Any, path: list[str]) -> Any:
    parent, last = _at(document, path[:-1]), path[-1]
    del parent[int(last) if isinstance(parent, list) else last]
    return document


def strategic_merge(target: Any, patch: Any, structure: Structure) -> Any:
    """As merge patch, but lists with a merge key are joined by it, and directives may delete or replace."""
    if not isinstance(patch, dict):
        return copy(patch)
    directive = patch.get("$patch")
    if directive == "delete":
        return {}
    merged = dict(target) if isinstance(target, dict) and directive != "replace" else {}
    for name, value in patch.items():
        if name == "$patch" or name.startswith("$setElementOrder/"):
            continue
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            merged[field] = [item for item in merged.get(field, []) if item not in value]
        elif name == "$retainKeys":
            merged = {key: inner for key, inner in merged.items() if key in value}
        elif value is None:
            merged.pop(name, None)
        else:
            child = structure.child(name) or ANYTHING
            if isinstance(value, list):
                merged[name] = _joined(merged.get(name) or [], value, child)
            else:
                merged[name] = strategic_merge(merged.get(name), value, child)
    return merged


def _joined(target: list[Any], patch: list[Any], structure: Structure) -> list[Any]:
    if not structure.merges or {"$patch": "replace"} in patch:
        return [copy(item) for item in patch if item != {"$patch": "replace"}]
    key = structure.patch_key
    if not key:  # a set of plain values
        return [*target, *(item for item in patch if item not in target)]
    merged = list(target)
    for item in patch:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        place = next((index for index, each in enumerate(merged) if each.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            merged = [each for each in merged if each.get(key) != item[key]]
        elif place is None:
            merged.append(strategic_merge({}, item, structure.items))
        else:
            merged[place] = strategic_merge(merged[place], item, structure.items)
    return merged
