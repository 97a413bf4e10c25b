"""Between a request and the store: unknown fields go, defaults come, and what is not valid is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube import cel, crd_rules, job_rules, pod_rules, small_rules, workload_rules
from tests.kube.checking import check, shown
from tests.kube.errors import ApiError, Cause, bad_request, invalid
from tests.kube.kinds import Kind
from tests.kube.objects import Object
from tests.kube.options import IGNORE, STRICT, Options
from tests.kube.shaping import prune, set_defaults

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_RULES = {
    ("batch", "jobs"): job_rules,
    ("", "pods"): pod_rules,
    ("apps", "deployments"): workload_rules,
    ("apps", "statefulsets"): workload_rules,
    ("apiextensions.k8s.io", "customresourcedefinitions"): crd_rules,
}
_LEFT_OUT_WHEN_EMPTY = ("labels", "annotations", "finalizers", "ownerReferences")
_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_PATH = re.compile(r"^[^/%]+$")
_QUALIFIED = re.compile(r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_MUST = "must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric"
_INCOMPLETE = (
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


class Admission:
    """One for the whole API; it asks the API what other objects there are."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def shaped(self, kind: Kind, obj: Object, old: Object | None, options: Options) -> Object:
        """The object as it will be stored. `obj` may be changed."""
        unknown: list[str] = []
        obj = prune(obj, kind.structure, "", unknown)
        meta = obj.setdefault("metadata", {})
        for name in [name for name in _LEFT_OUT_WHEN_EMPTY if not meta.get(name)]:
            meta.pop(name, None)
        if old is not None:
            unknown = [path for path in unknown if not path.startswith("status")]
        self._report(kind, unknown, options)
        if kind.custom:
            set_defaults(obj, kind.structure)
        self._check_types(kind, obj)
        rules = _RULES.get(kind.id, small_rules)
        rules.prepare(kind, obj, old)
        return obj

    @staticmethod
    def _report(kind: Kind, unknown: list[str], options: Options) -> None:
        told = [f'unknown field "{path}"' for path in unknown]
        if told and options.field_validation == STRICT:
            what = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
            raise bad_request(f"{what}: strict decoding error: {', '.join(told)}")
        if options.field_validation != IGNORE:
            options.warnings += told

    @staticmethod
    def _check_types(kind: Kind, obj: Object) -> None:
        """Built-in kinds are decoded into Go structures before anything else looks at them."""
        if kind.custom:
            return
        for cause in check(obj, kind.structure, ""):
            if cause.reason == "FieldValueTypeInvalid":
                what = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
                raise bad_request(f"{what}: json: cannot unmarshal into Go struct field {cause.field}: {cause.message}")

    @staticmethod
    def typed(kind: Kind, given: Object) -> Object:
        """A configuration for server-side apply; there, unknown fields are never let pass."""
        unknown: list[str] = []
        typed: Object = prune(given, kind.structure, "", unknown)
        if unknown:
            meta = given.get("metadata", {})
            what = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {kind.api_version}, Kind={kind.kind}"
            why = f".{unknown[0]}: field not declared in schema"
            raise ApiError(500, "InternalError", f"failed to create typed patch object ({what}): {why}")
        return typed

    def check(self, kind: Kind, obj: Object, old: Object | None, sub: str = "") -> None:
        """Refuses what must not be stored."""
        name = obj["metadata"]["name"]
        causes = list(_check_metadata(kind, obj))
        if kind.custom:
            causes += _check_custom(kind, obj, old)
        else:
            rules = _RULES.get(kind.id, small_rules)
            causes += rules.check(self._api, kind, obj, old, sub)
        if causes:
            raise invalid(kind, name, causes)


def _check_custom(kind: Kind, obj: Object, old: Object | None) -> Iterator[Cause]:
    causes = list(check(obj, kind.structure, ""))
    yield from causes
    if not causes:
        yield from cel.check_rules(obj, old, kind.structure)
    elif cel.has_rules(kind.structure):
        yield Cause("<nil>", f'Invalid value: "": {_INCOMPLETE}')


def _check_metadata(kind: Kind, obj: Object) -> Iterator[Cause]:
    meta = obj["metadata"]
    name = meta["name"]
    short = kind.plural in ("namespaces", "services")
    pattern = _LABEL if short else _SUBDOMAIN
    if kind.group == "rbac.authorization.k8s.io":
        pattern = _PATH
    if not pattern.match(name) or len(name) > (63 if short else 253):
        what = "a lowercase RFC 1123 label" if short else "a lowercase RFC 1123 subdomain"
        yield Cause("metadata.name", f'Invalid value: "{name}": {what} {_MUST} character')
    for field in ("labels", "annotations"):
        for key in meta.get(field) or {}:
            if not _QUALIFIED.match(key):
                why = "name part must consist of alphanumeric characters, '-', '_' or '.'"
                yield Cause(f"metadata.{field}", f"Invalid value: {shown(key)}: {why}")
    for key, value in (meta.get("labels") or {}).items():
        if len(value) > 63:
            yield Cause("metadata.labels", f'Invalid value: "{value}": must be no more than 63 bytes')
        elif not _VALUE.match(value):
            yield Cause(
                "metadata.labels",
                f'Invalid value: "{value}": a valid label must be an empty string or consist of '
                f"alphanumeric characters, '-', '_' or '.' ({key})",
            )
    for owner in meta.get("ownerReferences") or []:
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield Cause(f"metadata.ownerReferences.{field}", f'Invalid value: "": {field} must not be empty')
