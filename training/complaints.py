"""What is wrong with a settings file, as lines: the place in the file, then a sentence, then what was perhaps meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from training.part import SHAPES

_QUOTED = re.compile(r"'([^']*)'")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a sentence: `; did you mean steps?`, or nothing when no known name is near."""
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(what: str, known: tuple[str, ...]) -> Callable[[str], str]:
    """A pydantic validator: the value must be one of the known ones."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"there is no {what} {value!r}, only {', '.join(known)}{did_you_mean(value, known)}")
        return value

    return check


def complaints(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """A line for each error that validating `root` met."""
    for detail in error.errors():
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        yield f"{place}: {_sentence(detail, root)}" if place else _sentence(detail, root)


def _sentence(detail: Any, root: type[BaseModel]) -> str:
    kind, message, given = detail["type"], detail["msg"], detail["input"]
    if kind == "extra_forbidden":
        return f"there is no such field{did_you_mean(detail['loc'][-1], _fields_at(detail['loc'][:-1], root))}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"{SHAPES[detail['ctx']['pattern']]}, not {given!r}"
    if kind == "value_error":
        return str(message).removeprefix("Value error, ")
    said = f", not {given!r}" if isinstance(given, str | int | float | None) else ""
    meant = did_you_mean(given, _QUOTED.findall(message)) if kind == "literal_error" else ""
    return f"{message[0].lower()}{message[1:]}{said}{meant}"


def _fields_at(place: Iterable[int | str], root: type[BaseModel]) -> list[str]:
    """The names that the file's mapping at `place` may have."""
    model = root
    for part in place:
        for name, field in model.model_fields.items():
            if part in (field.alias, name):
                model = next(_models_in(field.annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
