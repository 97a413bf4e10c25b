"""The JSONPath of printer columns: fields, indexes, slices from the end, wildcards and filters by equality."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_STEP = re.compile(
    r"""\.?\[\?\(@(?P<field>[\w.\\/-]+)\s*(?P<operator>==|!=)\s*(?P<quote>['"]?)(?P<value>.*?)(?P=quote)\)\]"""
    r"""|\[(?P<index>-?\d*:?-?\d*|\*)\]"""
    r"""|\[['"](?P<quoted>[^'"]+)['"]\]"""
    r"""|\.(?P<name>(?:[^.\[\\]|\\.)+)"""
)
Step = tuple[str, Any]


@cache
def _steps(path: str) -> list[Step]:
    path = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    found: list[Step] = []
    while path:
        match = _STEP.match(path)
        if match is None:
            raise ValueError(f"cannot read the JSONPath at {path!r}")
        path = path[match.end() :]
        found.append(_step(match))
    return found


def _step(match: re.Match[str]) -> Step:
    if match["field"]:
        return "filter", (match["field"].lstrip("."), match["operator"], match["value"])
    if match["index"] is not None:
        return "index", match["index"]
    return "name", match["quoted"] or match["name"].replace("\\", "")


def find(obj: Any, path: str) -> list[Any]:
    """Every value at the path; none where it leads nowhere."""
    values = [obj]
    for kind, argument in _steps(path):
        values = [found for value in values for found in _walk(value, kind, argument)]
    return [value for value in values if value is not None]


def _walk(value: Any, kind: str, argument: Any) -> list[Any]:
    if kind == "name":
        return [value[argument]] if isinstance(value, dict) and argument in value else []
    items = list(value.values()) if isinstance(value, dict) and argument == "*" else value
    if not isinstance(items, list):
        return []
    if kind == "index":
        return _indexed(items, argument)
    field, operator, wanted = argument
    return [item for item in items if (_text(find(item, f".{field}")) == wanted) == (operator == "==")]


def _indexed(items: list[Any], index: str) -> list[Any]:
    if index == "*":
        return items
    if ":" in index:
        first, _, last = index.partition(":")
        return items[int(first) if first else None : int(last) if last else None]
    return items[int(index) :][:1]


def _text(values: list[Any]) -> str:
    return str(values[0]) if values else ""
