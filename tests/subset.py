"""Does the API server hold what Helm rendered? Every field that was written must be there; servers add many more."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import InvalidOperation
from typing import Any

from kubernetes.utils.quantity import parse_quantity

# Where numbers are quantities, which servers write in a form of their own: 1000m is 1.
_QUANTITIES = ("requests", "limits", "averageValue", "value", "sizeLimit", "storage")


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """What of `wanted` is not so in `found`, each with its path. Items of lists are told apart by their names."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            yield f"{path}: {found!r} is no map"
            return
        for name, value in wanted.items():
            if name in found or not _empty(value):
                yield from differences(value, found.get(name), f"{path}.{name}")
    elif isinstance(wanted, list):
        yield from _of_lists(wanted, found, path)
    elif wanted != found and not _same_quantity(wanted, found, path):
        yield f"{path}: {found!r} is not {wanted!r}"


def _empty(value: Any) -> bool:
    """What servers leave out. False and 0 they keep, where these are not what is meant anyway."""
    return value is None or value in ("", [], {})


def _of_lists(wanted: list[Any], found: Any, path: str) -> Iterator[str]:
    if not isinstance(found, list) or len(found) != len(wanted):
        yield f"{path}: {found!r} is not {wanted!r}"
    elif _named(wanted) and _named(found):
        there = {one["name"]: one for one in found}
        for one in wanted:
            yield from differences(one, there.get(one["name"]), f"{path}[{one['name']}]")
    else:
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")


def _named(items: list[Any]) -> bool:
    names = [one.get("name") for one in items if isinstance(one, dict)]
    return len(names) == len(items) and None not in names and len(set(names)) == len(names)


def _same_quantity(wanted: Any, found: Any, path: str) -> bool:
    if not set(path.split(".")) & set(_QUANTITIES):
        return False
    try:
        return bool(parse_quantity(wanted) == parse_quantity(found))
    except (ValueError, InvalidOperation, TypeError):
        return False
