"""API objects as plain dicts, and the few ways in which everything here reads them.

What the store holds is never changed in place: whoever wants to change an object copies it first.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]  # namespace ("" for what has none), name

BACKGROUND, FOREGROUND, ORPHAN = "Background", "Foreground", "Orphan"
FOREGROUND_FINALIZER, ORPHAN_FINALIZER = "foregroundDeletion", "orphan"


def dig(obj: Any, *path: str | int, default: Any = None) -> Any:
    """The value at `path`, or `default` where a step of it is missing or null."""
    for step in path:
        try:
            obj = obj[step]
        except (KeyError, IndexError, TypeError):
            return default
    return default if obj is None else obj


def key_of(obj: Object) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def copy(obj: Object) -> Object:
    return deepcopy(obj)


def timestamp(when: datetime | None = None) -> str:
    """As the API writes times: whole seconds, UTC."""
    return (when or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def seconds_since(text: str) -> float:
    return (datetime.now(UTC) - parse_time(text)).total_seconds()


def is_deleting(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def finalizers(obj: Object) -> list[str]:
    return obj["metadata"].get("finalizers") or []


def owners(obj: Object) -> list[Object]:
    return obj["metadata"].get("ownerReferences") or []


def controller_of(obj: Object) -> Object | None:
    return next((owner for owner in owners(obj) if owner.get("controller")), None)


def owner_reference(owner: Object) -> Object:
    """The reference by which `owner` controls its children."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def condition(obj: Object, kind: str) -> Object | None:
    """The condition of that type in the status."""
    return next((one for one in dig(obj, "status", "conditions", default=[]) if one["type"] == kind), None)


def is_true(obj: Object, kind: str) -> bool:
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"


def with_condition(status: Object, kind: str, value: str, reason: str = "", message: str = "") -> None:
    """Sets a condition in a status that may be changed; its time of transition moves only with its value."""
    conditions = status.setdefault("conditions", [])
    found = next((one for one in conditions if one["type"] == kind), None)
    if found is None:
        found = {"type": kind, "status": ""}
        conditions.append(found)
    if found["status"] != value:
        found["lastTransitionTime"] = timestamp()
    found |= {"status": value}
    for name, text in (("reason", reason), ("message", message)):
        found.pop(name, None)
        if text:
            found[name] = text
