"""The small objects that the tests of the API play with."""

from __future__ import annotations

from tests.kube.objects import Object

GROUP = "contract.test.ziya.dev"
STEPS_FIXED = "what has begun stays as it is"


_RULE = (
    "!has(oldSelf.status) || !has(oldSelf.status.begun) || oldSelf.status.begun.all(name, "
    "self.spec.steps.exists(new, new.name == name && oldSelf.spec.steps.exists(old, old == new)))"
)
_COLUMNS = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def gadget_definition() -> Object:
    """A kind with defaults, limits, a list of maps, a status and a rule about changes that reads the status."""
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": _spec(), "status": _status()},
        "x-kubernetes-validations": [{"rule": _RULE, "message": STEPS_FIXED}],
    }
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": _COLUMNS,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "shortNames": ["gdg"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gadgets.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _list_by(key: str, item: Object, **limits: int) -> Object:
    keys = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return {"type": "array", "items": item, **keys, **limits}


def _spec() -> Object:
    step = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 20, "pattern": "^[a-z]+$"},
            "kind": {"type": "string", "enum": ["train", "eval"], "default": "train"},
            "weight": {"type": "integer", "minimum": 0, "maximum": 10, "default": 1},
        },
    }
    return {
        "type": "object",
        "required": ["steps"],
        "properties": {
            "steps": _list_by("name", step, maxItems=8),
            "suspend": {"type": "boolean", "default": False},
            "size": {"type": "integer", "minimum": 1},
            "port": {"x-kubernetes-int-or-string": True},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }


def _status() -> Object:
    names = {"type": "array", "maxItems": 8, "items": {"type": "string", "maxLength": 20}}
    texts = {"type": {"type": "string"}, "status": {"type": "string"}}
    condition = {"type": "object", "required": ["type", "status"], "properties": texts}
    fields = {"phase": {"type": "string"}, "begun": names, "conditions": _list_by("type", condition)}
    return {"type": "object", "properties": fields}


def gadget(name: str, *steps: str, **spec: object) -> Object:
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "Gadget",
        "metadata": {"name": name},
        "spec": {"steps": [{"name": step} for step in steps], **spec},
    }


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def owned_by(owner: Object, blocks: bool = True) -> list[Object]:
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    return [{**reference, "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": blocks}]


def job(name: str, script: str, pod: Object | None = None, container: Object | None = None, **spec: object) -> Object:
    """A Job whose only container runs the script in a shell."""
    main = {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **(container or {})}
    template = {"spec": {"restartPolicy": "Never", "containers": [main], **(pod or {})}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


def gang(name: str, script: str, size: int = 2, **more: object) -> Object:
    """An Indexed Job of that many pods at once."""
    made = job(name, script, completionMode="Indexed", completions=size, parallelism=size)
    made["spec"].update(more)
    return made
