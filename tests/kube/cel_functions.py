"""What Kubernetes adds to CEL: functions on strings and lists, for cel-python."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from celpy.celtypes import BoolType, IntType, ListType, StringType


def _split(text: str, separator: str, most: int = -1) -> ListType:
    parts = text.split(separator, most - 1 if most > 0 else -1) if separator else list(text)
    return ListType([StringType(part) for part in parts])


def _replace(text: str, old: str, new: str, most: int = -1) -> StringType:
    return StringType(text.replace(old, new, int(most)))


def _substring(text: str, start: int, end: int | None = None) -> StringType:
    return StringType(text[int(start) : None if end is None else int(end)])


def _join(items: list[str], separator: str = "") -> StringType:
    return StringType(separator.join(items))


def _index_of(where: Any, what: Any) -> IntType:
    if isinstance(where, str):
        return IntType(where.find(what))
    return IntType(next((index for index, item in enumerate(where) if item == what), -1))


def _last_index_of(where: Any, what: Any) -> IntType:
    if isinstance(where, str):
        return IntType(where.rfind(what))
    return IntType(max((index for index, item in enumerate(where) if item == what), default=-1))


def _find(text: str, pattern: str) -> StringType:
    found = re.search(pattern, text)
    return StringType(found[0] if found else "")


def _sum(items: list[Any]) -> Any:
    return sum(items[1:], items[0]) if items else IntType(0)


def _is_sorted(items: list[Any]) -> BoolType:
    return BoolType(all(first <= second for first, second in pairwise(items)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lowerAscii": lambda text: StringType(text.lower()),
    "upperAscii": lambda text: StringType(text.upper()),
    "trim": lambda text: StringType(text.strip()),
    "charAt": lambda text, index: StringType(text[int(index) : int(index) + 1]),
    "split": _split,
    "replace": _replace,
    "substring": _substring,
    "join": _join,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "find": _find,
    "sum": _sum,
    "isSorted": _is_sorted,
    "min": min,
    "max": max,
}
