"""Reading a JSON object field by field: whatever is wrong is refused with the path of the field.

A reader takes the fields it knows; `done` refuses what is left. A misspelt option is thereby an error and
not an option that silently does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from ziya.errors import BadField

T = TypeVar("T")
_NAMES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "an array",
}


class Fields:
    """One JSON object and its path ("" for the body itself)."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise BadField(f"{path or 'the body'} must be a JSON object", path, "invalid_type")
        self._left: dict[str, Any] = dict(value)
        self._path = path

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str, kind: type[T]) -> T | None:
        """The field's value of that kind; None when it is absent or null. An integer is a number, too."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = number(value)
        if type(value) is not kind:
            raise BadField(f"{self.path(name)} must be {_NAMES[kind]}", self.path(name), "invalid_type")
        return value

    def need(self, name: str, kind: type[T]) -> T:
        """As `take`, of a field that must be there."""
        value = self.take(name, kind)
        if value is None:
            raise BadField(f"{self.path(name)} is missing", self.path(name), "missing_required_parameter")
        return value

    def raw(self, name: str) -> Any:
        """The field's value as it is; None when it is absent."""
        return self._left.pop(name, None)

    def neutral(self, values: Mapping[str, tuple[object, ...]]) -> None:
        """Accepts fields that would change nothing; an empty tuple accepts anything. Null is always neutral."""
        for name, accepted in values.items():
            value = self._left.pop(name, None)
            if value is None or not accepted or any(_same(value, each) for each in accepted):
                continue
            raise BadField(f"{self.path(name)} is not supported", self.path(name), "unsupported_parameter")

    def done(self) -> None:
        """Refuses the fields that nobody took."""
        for name in self._left:
            raise BadField(f"{self.path(name)} is not a field of this request", self.path(name), "unknown_parameter")


def number(value: int | float) -> float:
    """A number of JSON; what is too large for a float is infinite, and so outside all bounds."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _same(one: object, other: object) -> bool:
    """Equality as JSON has it: 1 is not true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
