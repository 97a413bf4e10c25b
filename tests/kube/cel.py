"""The rules of `x-kubernetes-validations`, evaluated by cel-python.

A rule that names `oldSelf` speaks of a change: it runs on updates alone, and only where the old value can be found, so
not inside lists that have no keys. Any other rule is left out where its value did not change, as the real server does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy
from celpy import celtypes
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from tests.kube.cel_functions import FUNCTIONS
from tests.kube.checking import wrong
from tests.kube.errors import Cause
from tests.kube.objects import Object, parse_time
from tests.kube.structure import ANYTHING, Structure

_ENVIRONMENT = celpy.Environment()
_RESERVED = (
    *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import"),
    *("let", "loop", "package", "namespace", "return", "var", "void", "while"),
)


@cache
def _program(rule: str) -> celpy.Runner:
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(rule), functions=FUNCTIONS)


@cache
def is_transition(rule: str) -> bool:
    return re.search(r"\boldSelf\b", rule) is not None


def syntax_error(rule: str) -> str | None:
    """Why the rule cannot be compiled."""
    try:
        _program(rule)
    except CELParseError as error:
        return str(error)
    return None


def check_rules(new: Any, old: Any, structure: Structure, path: str = "", whole: bool = True) -> Iterator[Cause]:
    """Every rule that `new`, put in place of `old` (None: there is none), breaks at and below `path`."""
    if structure is ANYTHING or new is None:
        return
    rules = structure.raw.get("x-kubernetes-validations", ())
    if rules:
        yield from _broken(rules, _seen(new) if whole else new, _seen(old) if whole else old, structure, path)
    if isinstance(new, dict):
        for name, value in new.items():
            child = structure.child(name)
            if child is not None and has_rules(child):
                before = old.get(name) if isinstance(old, dict) else None
                yield from check_rules(value, before, child, f"{path}.{name}" if path else name, False)
    elif isinstance(new, list) and has_rules(structure.items):
        for index, item in enumerate(new):
            yield from check_rules(item, _same(item, old, structure), structure.items, f"{path}[{index}]", False)


def has_rules(structure: Structure) -> bool:
    """Kept on the schema's node: most of a large one has none."""
    found: bool | None = structure.__dict__.get("_has_rules")
    if found is None:
        structure.__dict__["_has_rules"] = False  # a definition that contains itself
        inner = [*structure.properties.values(), *([structure.additional] if structure.additional else [])]
        inner += [structure.items] if "items" in structure.raw else []
        found = "x-kubernetes-validations" in structure.raw or any(has_rules(each) for each in inner)
        structure.__dict__["_has_rules"] = found
    return found


def _seen(obj: Any) -> Any:
    """Of an object's metadata, rules may read the name alone."""
    if not isinstance(obj, dict):
        return obj
    names = {key: value for key, value in obj["metadata"].items() if key in ("name", "generateName")}
    return {**obj, "metadata": names}


def _same(item: Any, old: Any, structure: Structure) -> Any:
    """The item of the old list that has the same keys."""
    if structure.list_type != "map" or not isinstance(old, list):
        return None
    return next((each for each in old if structure.item_key(each) == structure.item_key(item)), None)


def _broken(rules: list[Object], new: Any, old: Any, structure: Structure, path: str) -> Iterator[Cause]:
    names: dict[str, Any] = {}
    for rule in rules:
        text = rule["rule"]
        if (old is None) if is_transition(text) else (old is not None and old == new):
            continue
        names = names or {
            "self": to_cel(new, structure),
            **({"oldSelf": to_cel(old, structure)} if old is not None else {}),
        }
        complaint = _complaint(rule, names)
        if complaint is not None:
            found = wrong(path or "<nil>", new, complaint)
            where = f"{path}{rule.get('fieldPath', '')}" or "<nil>"
            reason = rule.get("reason", "FieldValueInvalid")
            yield Cause(where, _worded(reason, found.message, complaint), reason)


def _worded(reason: str, message: str, complaint: str) -> str:
    words = {"FieldValueForbidden": "Forbidden", "FieldValueRequired": "Required value"}
    return f"{words[reason]}: {complaint}" if reason in words else message


def _complaint(rule: Object, names: dict[str, Any]) -> str | None:
    try:
        answer = _program(rule["rule"]).evaluate(names)
    except CELEvalError as error:
        return f"rule evaluation error: {error.args[0]}: evaluating rule: {rule['rule']}"
    if answer:
        return None
    if "messageExpression" in rule:
        try:
            return str(_program(rule["messageExpression"]).evaluate(names))
        except CELEvalError:
            pass
    return str(rule.get("message") or f"failed rule: {' '.join(rule['rule'].split())}")


def to_cel(value: Any, structure: Structure) -> Any:
    """By the schema, since JSON does not tell 1 from 1.0, nor a time from a text."""
    if isinstance(value, dict):
        fields = structure.properties
        return celtypes.MapType(
            {
                celtypes.StringType(_escaped(name) if name in fields else name): to_cel(
                    inner, structure.child(name) or ANYTHING
                )
                for name, inner in value.items()
            }
        )
    if isinstance(value, list):
        return celtypes.ListType([to_cel(item, structure.items) for item in value])
    if isinstance(value, str) and structure.raw.get("format") == "date-time":
        return celtypes.TimestampType(parse_time(value))
    if structure.type == "number" and isinstance(value, int) and not isinstance(value, bool):
        return celtypes.DoubleType(value)
    if structure.type == "integer" and isinstance(value, float):
        return celtypes.IntType(int(value))
    return celpy.json_to_cel(value)


def _escaped(name: str) -> str:
    """A field's name as rules have to write it."""
    if name in _RESERVED:
        return f"__{name}__"
    for sign, word in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(sign, word)
    return name
