"""OpenAPI v3, by which kubectl knows what may be patched how, and explains fields."""

from __future__ import annotations

from typing import Any

from tests.kube.kinds import Kind, Kinds
from tests.kube.objects import Object
from tests.kube.structure import definition_name, definitions

_SCHEMAS = "#/components/schemas/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_MEDIA = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
_STRATEGIC = "application/strategic-merge-patch+json"
_GVK = "x-kubernetes-group-version-kind"


def answer(kinds: Kinds, path: str) -> Object | None:
    """The index, or the document of one group and version."""
    if path == "/openapi/v3":
        places = {_place(kind): {"serverRelativeURL": f"/openapi/v3/{_place(kind)}?hash=0"} for kind in kinds}
        return {"paths": places}
    if path.startswith("/openapi/v3/"):
        served = [kind for kind in kinds if _place(kind) == path.removeprefix("/openapi/v3/")]
        return _document(served) if served else None
    return None


def _place(kind: Kind) -> str:
    return f"apis/{kind.api_version}" if kind.group else f"api/{kind.version}"


def _document(kinds: list[Kind]) -> Object:
    schemas: dict[str, Object] = {}
    paths: Object = {}
    for kind in kinds:
        _add_schema(kind, schemas)
        space = "/namespaces/{namespace}" if kind.namespaced else ""
        collection = f"/{_place(kind)}{space}/{kind.plural}"
        paths[collection] = {"post": _operation(kind, "post", _MEDIA[:1])}
        if kind.stores:
            media = (*_MEDIA, *(() if kind.custom else (_STRATEGIC,)))
            paths[f"{collection}/{{name}}"] = {
                "get": _operation(kind, "get", ()),
                "patch": _operation(kind, "patch", media),
            }
    info = {"title": "Kubernetes", "version": "v1.36.2"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _operation(kind: Kind, action: str, media: tuple[str, ...]) -> Object:
    names = ("dryRun", "fieldManager", "fieldValidation")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    operation: Object = {
        "parameters": parameters if media else [],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        _GVK: _gvk(kind),
    }
    if media:
        operation["requestBody"] = {"content": {each: {"schema": {}} for each in media}}
    return operation


def _gvk(kind: Kind) -> Object:
    return {"group": kind.group, "kind": kind.kind, "version": kind.version}


def _add_schema(kind: Kind, schemas: dict[str, Object]) -> None:
    if not kind.custom:
        _add_definition(definition_name(kind.group, kind.version, kind.kind), schemas)
        return
    _add_definition(_META, schemas)
    name = ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind])
    raw = dict(kind.structure.raw)
    raw["properties"] = {**raw["properties"], "metadata": {"allOf": [{"$ref": _SCHEMAS + _META}]}}
    schemas[name] = {**raw, _GVK: [_gvk(kind)]}


def _add_definition(name: str, schemas: dict[str, Object]) -> None:
    """With all that it refers to."""
    if name in schemas:
        return
    schemas[name] = {}
    schemas[name] = _plain(definitions()[name], schemas)


def _plain(node: Any, schemas: dict[str, Object]) -> Any:
    """As OpenAPI has it: one type each, and references that stand alone."""
    if isinstance(node, list):
        return [_plain(each, schemas) for each in node]
    if not isinstance(node, dict):
        return node
    if isinstance(reference := node.get("$ref"), str):
        name = reference.rpartition("/")[2]
        _add_definition(name, schemas)
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**rest, "allOf": [{"$ref": _SCHEMAS + name}]} if rest else {"$ref": _SCHEMAS + name}
    plain = {key: value if key == _GVK else _plain(value, schemas) for key, value in node.items()}
    if isinstance(kinds := node.get("type"), list):
        plain["type"] = next(each for each in kinds if each != "null")
    return plain
