"""Server-side apply, and the record of who owns which field that it lives by (`metadata.managedFields`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.kube.errors import ApiError
from tests.kube.field_sets import Leaves, Path, decode, encode, is_item, leaves, shown, without
from tests.kube.objects import Object, copy, timestamp
from tests.kube.structure import ANYTHING, Structure

APPLY, UPDATE = "Apply", "Update"
_SERVERS_OWN = (
    *("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "generateName"),
    *("deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"),
)


@dataclass
class Entry:
    """What one manager owns through one kind of operation."""

    manager: str
    operation: str
    subresource: str
    api_version: str
    time: str
    fields: set[Path] = field(default_factory=set)

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.manager, self.operation, self.subresource

    def body(self) -> Object:
        told: Object = {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": encode(self.fields),
        }
        return told | ({"subresource": self.subresource} if self.subresource else {})


def read_entries(obj: Object) -> list[Entry]:
    return [
        Entry(
            one["manager"],
            one["operation"],
            one.get("subresource", ""),
            one["apiVersion"],
            one["time"],
            decode(one["fieldsV1"]),
        )
        for one in obj["metadata"].get("managedFields") or []
    ]


def _owned(obj: Object, structure: Structure, names: Iterable[str] | None = None) -> Leaves:
    """The leaves that somebody may own."""
    found: Leaves = {}
    for name, value in obj.items():
        if name in ("apiVersion", "kind") or (names is not None and name not in names):
            continue
        if name == "metadata":
            own = {key: inner for key, inner in value.items() if key not in _SERVERS_OWN}
            found |= leaves(own, structure.child(name) or ANYTHING, (f"f:{name}",)) if own else {}
        else:
            found |= leaves(value, structure.child(name) or ANYTHING, (f"f:{name}",))
    return found


def _entry(entries: list[Entry], manager: str, operation: str, subresource: str, api_version: str) -> Entry:
    for each in entries:
        if each.identity == (manager, operation, subresource):
            each.api_version = api_version
            return each
    entries.append(Entry(manager, operation, subresource, api_version, timestamp()))
    return entries[-1]


def _write_entries(obj: Object, entries: list[Entry]) -> None:
    obj["metadata"]["managedFields"] = [each.body() for each in entries if each.fields]


def track(old: Object | None, new: Object, structure: Structure, manager: str, subresource: str) -> None:
    """Records in `new` that `manager` changed it from `old`."""
    before = old or {"metadata": {}}
    names = [name for name in {*before, *new} if before.get(name) != new.get(name)]
    was, now = _owned(before, structure, names), _owned(new, structure, names)
    changed = {path for path, value in now.items() if path not in was or was[path] != value}
    gone = was.keys() - now.keys()
    entries = read_entries(before)
    taken = {path for path in changed if not is_item(now[path])}
    for each in entries:
        each.fields -= gone | taken
    if changed:
        mine = _entry(entries, manager, UPDATE, subresource, new["apiVersion"])
        mine.fields |= changed
        mine.time = timestamp()
    _write_entries(new, entries)


def apply(live: Object, given: Object, structure: Structure, by: tuple[str, str], force: bool) -> Object:
    """`live` with what `manager` now wants of it, and without what it wanted before and nobody else owns."""
    wanted = _owned(given, structure)
    entries = read_entries(live)
    manager, subresource = by
    mine = _entry(entries, manager, APPLY, subresource, given["apiVersion"])
    others = [each for each in entries if each is not mine]
    live_leaves = _owned(live, structure)
    disputed = _disputes(wanted, live_leaves, others)
    if disputed and not force:
        raise _conflict(disputed)
    for entry, path in disputed:
        entry.fields.discard(path)
    merged: Object = _merged(live, given, structure)
    shared: set[Path] = set().union(*(each.fields for each in others)) if others else set()
    for path in sorted(mine.fields - wanted.keys(), key=len):
        if path not in shared and not any(other[: len(path)] == path for other in shared):
            merged = without(merged, path, structure)
    if mine.fields != wanted.keys():
        mine.fields, mine.time = set(wanted), timestamp()
    merged["metadata"] = dict(merged["metadata"])
    _write_entries(merged, entries)
    return merged


def _disputes(wanted: Leaves, live: Leaves, others: list[Entry]) -> list[tuple[Entry, Path]]:
    return [
        (each, path)
        for each in others
        for path in sorted(each.fields & wanted.keys())
        if not is_item(wanted[path]) and path in live and live[path] != wanted[path]
    ]


def _conflict(disputed: list[tuple[Entry, Path]]) -> ApiError:
    causes = []
    for entry, path in disputed:
        operator = "" if entry.operation == APPLY else f" using {entry.api_version}"
        through = f' with subresource "{entry.subresource}"' if entry.subresource else ""
        message = f'conflict with "{entry.manager}"{through}{operator}'
        causes.append({"reason": "FieldManagerConflict", "message": message, "field": shown(path)})
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        told = "\n".join(f"{cause['message']}: {cause['field']}" for cause in causes)
        text = f"Apply failed with {len(causes)} conflicts: {told}"
    return ApiError(409, "Conflict", text, {"causes": causes})


def _merged(live: Any, given: Any, structure: Structure) -> Any:
    if isinstance(given, dict) and isinstance(live, dict) and not structure.is_atomic:
        result = dict(live)
        for name, value in given.items():
            child = structure.child(name) or ANYTHING
            result[name] = _merged(result[name], value, child) if name in result else copy(value)
        return result
    if isinstance(given, list) and isinstance(live, list) and structure.list_type == "set":
        return [*live, *(item for item in given if item not in live)]
    if isinstance(given, list) and isinstance(live, list) and structure.list_type == "map":
        result_list = list(live)
        for item in given:
            key = structure.item_key(item)
            place = next((at for at, each in enumerate(live) if structure.item_key(each) == key), None)
            if place is None:
                result_list.append(copy(item))
            else:
                result_list[place] = _merged(live[place], item, structure.items)
        return result_list
    return copy(given)
