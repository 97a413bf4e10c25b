"""Label and field selectors: from the text of a query to a test on an object."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.kube.errors import bad_request
from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig

Test = Callable[[Object], bool]
Labels = dict[str, str]

_SETS = re.compile(r"^\s*([\w./-]+)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUALS = re.compile(r"^\s*([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)\s*$")
_EXISTS = re.compile(r"^\s*(!?)\s*([\w./-]+)\s*$")
_FIELDS = {
    "pods": ("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"),
    "jobs": ("status.successful",),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "secrets": ("type",),
    "events": (
        *(f"involvedObject.{field}" for field in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")),
        *("involvedObject.resourceVersion", "reason", "reportingComponent", "source", "type"),
    ),
}


def label_test(text: str) -> Callable[[Labels], bool]:
    tests = [_label_requirement(part) for part in re.split(r",(?![^(]*\))", text) if part.strip()]
    return lambda labels: all(test(labels) for test in tests)


def _label_requirement(text: str) -> Callable[[Labels], bool]:
    if found := _SETS.match(text):
        key, operator, values = found[1], found[2], {value.strip() for value in found[3].split(",")}
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUALS.match(text):
        key, operator, value = found[1], found[2], found[3]
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(text):
        absent, key = bool(found[1]), found[2]
        return lambda labels: (key in labels) != absent
    raise bad_request(f'unable to parse requirement: "{text}"')


def field_test(kind: Kind, text: str) -> Test:
    tests = [_field_requirement(kind, part) for part in text.split(",") if part]
    return lambda obj: all(test(obj) for test in tests)


def _field_requirement(kind: Kind, text: str) -> Test:
    found = re.match(r"^([\w.]+)(==|=|!=)(.*)$", text)
    if found is None:
        raise bad_request(f"invalid selector: '{text}'; can't understand '{text}'")
    path, operator, value = found[1], found[2], found[3]
    common = ("metadata.name", "metadata.namespace")
    if path not in common and path not in _FIELDS.get(kind.plural, ()):
        raise bad_request(
            f'field label not supported: "{path}"' if kind.custom else f"field label not supported: {path}"
        )
    steps = path.split(".")
    return lambda obj: (str(dig(obj, *steps, default="")) == value) != (operator == "!=")


def object_test(kind: Kind, labels: str, fields: str) -> Test:
    """Both at once, as lists and watches ask."""
    by_label, by_field = label_test(labels), field_test(kind, fields)
    return lambda obj: by_label(obj["metadata"].get("labels") or {}) and by_field(obj)


def matches(selector: Object | None, labels: Labels) -> bool:
    """A LabelSelector object, as Jobs and Services carry; none matches nothing."""
    if not selector:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression(one, labels) for one in selector.get("matchExpressions") or [])


def _expression(one: Object, labels: Labels) -> bool:
    key, operator, values = one["key"], one["operator"], one.get("values") or []
    known = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return known[operator]
