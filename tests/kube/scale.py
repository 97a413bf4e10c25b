"""The subresource by which a scaler sets replicas without knowing the kind that has them: a Scale, read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.kube import patching
from tests.kube.checking import check, wrong
from tests.kube.errors import bad_request, invalid
from tests.kube.kinds import Kind
from tests.kube.objects import Key, Object, dig
from tests.kube.options import Options
from tests.kube.structure import built_in

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_GROUP, _VERSION, _KIND = "autoscaling", "v1", "Scale"
_KEPT = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
_OPERATORS = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}


def read(obj: Object) -> Object:
    spec = obj["spec"]
    replicas = dig(spec, "replicas", default=0)
    status: Object = {"replicas": dig(obj, "status", "replicas", default=0)}
    if selector := _text(spec.get("selector") or {}):
        status["selector"] = selector
    return {
        "kind": _KIND,
        "apiVersion": f"{_GROUP}/{_VERSION}",
        "metadata": {name: value for name, value in obj["metadata"].items() if name in _KEPT},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def _text(selector: Object) -> str:
    """As lists and watches take it, which is how a scaler finds the pods."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for one in selector.get("matchExpressions") or []:
        parts.append(_OPERATORS[one["operator"]].format(one["key"], ",".join(one.get("values") or [])))
    return ",".join(parts)


def write(api: Api, place: tuple[Kind, Key], body: Any, media: str, options: Options) -> Object:
    """By PUT or by a patch. Only the number of replicas is taken; a version in it is, as ever, a condition."""
    before = read(api.read(*place))
    if media == patching.APPLY:
        raise bad_request("this server does not apply scales")
    if media == patching.JSON:
        after = patching.json_patch(before, body)
    elif media in (patching.MERGE, patching.STRATEGIC):
        after = patching.merge_patch(before, body)
    else:
        after = body
    for cause in check(after, built_in(_GROUP, _VERSION, _KIND), ""):
        raise bad_request(f'Scale in version "{_VERSION}" cannot be handled as a Scale: {cause.message}')
    replicas, version = dig(after, "spec", "replicas", default=0), dig(after, "metadata", "resourceVersion")
    if replicas < 0:
        scale = Kind(_GROUP, _VERSION, _KIND, "scales")
        raise invalid(scale, place[1][1], [wrong("spec.replicas", replicas, "must be greater than or equal to 0")])
    patch = {"metadata": {"resourceVersion": version or None}, "spec": {"replicas": replicas}}
    return read(api.patch(*place, patch, patching.MERGE, options))
