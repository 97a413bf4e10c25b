"""What the API demands of a CustomResourceDefinition: a structural schema, one stored version, rules that compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube import cel
from tests.kube.checking import check as check_schema
from tests.kube.checking import required, shown
from tests.kube.errors import Cause
from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_TYPELESS = ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields")


def prepare(kind: Kind, obj: Object, old: Object | None) -> None:
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if "kind" in names:
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")
    spec.setdefault("conversion", {"strategy": "None"})
    if old is None:
        stored = [each["name"] for each in spec.get("versions") or [] if each.get("storage")]
        obj["status"] = {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}


def check(api: Api, kind: Kind, obj: Object, old: Object | None, sub: str) -> Iterator[Cause]:
    if sub == "status" or (old is not None and old["spec"] == obj["spec"]):
        return
    causes = [cause for cause in check_schema(obj, kind.structure, "") if not cause.field.startswith("status")]
    yield from causes
    if causes:
        return
    spec, name = obj["spec"], obj["metadata"]["name"]
    expected = f"{spec['names']['plural']}.{spec['group']}"
    if name != expected:
        why = 'must be spec.names.plural+"."+spec.group'
        yield Cause("metadata.name", f"Invalid value: {shown(name)}: {why}")
    if sum(bool(version["storage"]) for version in spec["versions"]) != 1:
        yield Cause("spec.versions", "Invalid value: must have exactly one version marked as storage version")
    for index, version in enumerate(spec["versions"]):
        where = f"spec.versions[{index}].schema.openAPIV3Schema"
        schema = dig(version, "schema", "openAPIV3Schema")
        if schema is None:
            yield required(where, "schemas are required")
        else:
            yield from _check_node(schema, where)


def _check_node(schema: Object, where: str) -> Iterator[Cause]:
    """A structural schema says of every field what type it has."""
    if not schema.get("type") and not any(schema.get(word) for word in _TYPELESS):
        yield required(f"{where}.type", "must not be empty for specified object fields")
    for index, rule in enumerate(schema.get("x-kubernetes-validations") or []):
        if fault := cel.syntax_error(rule["rule"]):
            why = f"Invalid value: {shown(rule['rule'])}: compilation failed: {fault}"
            yield Cause(f"{where}.x-kubernetes-validations[{index}].rule", why)
    for name, child in (schema.get("properties") or {}).items():
        if "." not in where or name != "metadata":
            yield from _check_node(child, f"{where}.properties[{name}]")
    if isinstance(schema.get("items"), dict):
        yield from _check_node(schema["items"], f"{where}.items")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _check_node(schema["additionalProperties"], f"{where}.additionalProperties")
    if schema.get("x-kubernetes-list-type") == "map":
        yield from _check_list_map(schema, where)


def _check_list_map(schema: Object, where: str) -> Iterator[Cause]:
    items = schema.get("items", {})
    for key in schema.get("x-kubernetes-list-map-keys") or []:
        given = dig(items, "properties", key)
        if key not in items.get("required", []) and "default" not in (given or {}):
            why = "this property must either be required or have a default"
            yield required(f"{where}.items.properties[{key}].default", why)
