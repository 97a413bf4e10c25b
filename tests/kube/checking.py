"""Is an object what its schema says? Every fault becomes a cause, in the words of the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from tests.kube.errors import Cause
from tests.kube.structure import ANYTHING, Structure, object_meta

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: (isinstance(value, int) and not isinstance(value, bool)) or _is_whole(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_LIMITS = {"int32": 2**31, "int64": 2**63}


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def shown(value: Any) -> str:
    """A value as messages quote it."""
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def type_name(value: Any) -> str:
    if value is None:
        return "null"
    return next(name for name, test in _TYPES.items() if test(value))


def required(path: str, why: str = "") -> Cause:
    return Cause(path, f"Required value{': ' if why else ''}{why}", "FieldValueRequired")


def wrong(path: str, value: Any, why: str) -> Cause:
    quoted = shown(type_name(value)) if isinstance(value, dict | list) else shown(value)
    return Cause(path, f"Invalid value: {quoted}: {why}")


def check(value: Any, structure: Structure, path: str) -> Iterator[Cause]:
    """Everything that is wrong at and below `path`."""
    if structure is ANYTHING or (value is None and structure.nullable):
        return
    if not _is_of_type(value, structure):
        expected = structure.type or "integer or string"
        why = f'{path} in body must be of type {expected}: "{type_name(value)}"'
        yield Cause(path, f'Invalid value: "{type_name(value)}": {why}', "FieldValueTypeInvalid")
        return
    yield from _check_value(value, structure, path)
    if isinstance(value, dict):
        yield from _check_map(value, structure, path)
    elif isinstance(value, list):
        yield from _check_list(value, structure, path)


def _is_of_type(value: Any, structure: Structure) -> bool:
    if structure.int_or_string:
        return _TYPES["integer"](value) or _TYPES["string"](value)
    return not structure.type or _TYPES[structure.type](value)


def _check_value(value: Any, structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    if "enum" in raw and value not in raw["enum"]:
        known = ", ".join(shown(each) for each in raw["enum"])
        yield Cause(path, f"Unsupported value: {shown(value)}: supported values: {known}", "FieldValueNotSupported")
    if isinstance(value, str):
        yield from _check_text(value, structure, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _check_number(value, structure, path)
    yield from _check_combinations(value, structure, path)


def _check_text(value: str, structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    if len(value) > raw.get("maxLength", len(value)):
        yield Cause(path, f"Too long: may not be more than {raw['maxLength']} bytes", "FieldValueTooLong")
    if len(value) < raw.get("minLength", 0):
        yield wrong(path, value, f"{path} in body should be at least {raw['minLength']} chars long")
    if "pattern" in raw and not re.search(raw["pattern"], value):
        yield wrong(path, value, f"{path} in body should match '{raw['pattern']}'")
    if raw.get("format") == "date-time" and not _is_time(value):
        yield wrong(path, value, f'{path} in body must be of type date-time: "{value}"')


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00")).tzinfo is not None
    except ValueError:
        return False


def _check_number(value: float, structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    low, high = raw.get("minimum"), raw.get("maximum")
    if low is not None and (value < low or (raw.get("exclusiveMinimum") and value == low)):
        how = "greater than" if raw.get("exclusiveMinimum") else "greater than or equal to"
        yield wrong(path, value, f"{path} in body should be {how} {low}")
    if high is not None and (value > high or (raw.get("exclusiveMaximum") and value == high)):
        how = "less than" if raw.get("exclusiveMaximum") else "less than or equal to"
        yield wrong(path, value, f"{path} in body should be {how} {high}")
    if (step := raw.get("multipleOf")) and value % step:
        yield wrong(path, value, f"{path} in body should be a multiple of {step}")
    limit = _LIMITS.get(raw.get("format", ""))
    if limit and not -limit <= value < limit:
        yield wrong(path, value, f"{path} in body must be of type {raw['format']}: {shown(value)}")


def _check_combinations(value: Any, structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    for each in raw.get("allOf", ()):
        yield from check(value, Structure(each), path)
    for word in ("anyOf", "oneOf"):
        if word in raw:
            hits = sum(not any(True for _ in check(value, Structure(each), path)) for each in raw[word])
            if hits == 0 or (word == "oneOf" and hits > 1):
                article = "at least one schema (anyOf)" if word == "anyOf" else "one and only one schema (oneOf)"
                yield wrong(path, value, f'"{path}" must validate {article}')
    if "not" in raw and not any(True for _ in check(value, Structure(raw["not"]), path)):
        yield wrong(path, value, f'"{path}" must not validate the schema (not)')


def _check_map(value: dict[str, Any], structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    for name in raw.get("required", ()):
        if name not in value:
            yield required(f"{path}.{name}" if path else name)
    if len(value) > raw.get("maxProperties", len(value)):
        most = raw["maxProperties"]
        yield Cause(path, f"Too many: {len(value)}: must have at most {most} items", "FieldValueTooMany")
    if len(value) < raw.get("minProperties", 0):
        yield wrong(path, value, f"{path} in body should have at least {raw['minProperties']} properties")
    for name, inner in value.items():
        child = structure.child(name)
        if child is not None and child is not object_meta():
            separator = f"[{name}]" if structure.properties.get(name) is None and structure.additional else f".{name}"
            yield from check(inner, child, f"{path}{separator}" if path else name)


def _check_list(value: list[Any], structure: Structure, path: str) -> Iterator[Cause]:
    raw = structure.raw
    if len(value) > raw.get("maxItems", len(value)):
        most = raw["maxItems"]
        yield Cause(path, f"Too many: {len(value)}: must have at most {most} items", "FieldValueTooMany")
    if len(value) < raw.get("minItems", 0):
        yield wrong(path, len(value), f"{path} in body should have at least {raw['minItems']} items")
    seen: list[Any] = []
    for index, item in enumerate(value):
        yield from check(item, structure.items, f"{path}[{index}]")
        identity = _identity(item, structure)
        if identity is not None and identity in seen:
            quoted = (
                shown(dict(zip(structure.list_keys, identity, strict=True))) if structure.list_keys else shown(item)
            )
            yield Cause(f"{path}[{index}]", f"Duplicate value: {quoted}", "FieldValueDuplicate")
        seen.append(identity)


def _identity(item: Any, structure: Structure) -> Any:
    if structure.list_type == "map" and isinstance(item, dict):
        return structure.item_key(item)
    return item if structure.list_type == "set" or structure.raw.get("uniqueItems") else None
