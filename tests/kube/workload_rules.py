"""What the API makes of Deployments and StatefulSets: defaults, also of their pods, and what has to fit or stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube.checking import check as check_schema
from tests.kube.checking import required, shown
from tests.kube.errors import Cause
from tests.kube.kinds import Kind
from tests.kube.objects import Object, dig
from tests.kube.pod_rules import check_spec, set_spec_defaults
from tests.kube.selectors import matches

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_CHANGES = ("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds")
_FIXED = (
    "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
    "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' "
    "are forbidden"
)


def prepare(kind: Kind, obj: Object, old: Object | None) -> None:
    spec = obj.setdefault("spec", {})
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    spec.setdefault("revisionHistoryLimit", 10)
    if kind.kind == "Deployment":
        spec.setdefault("progressDeadlineSeconds", 600)
        _set_strategy(spec.setdefault("strategy", {}), {"maxUnavailable": "25%", "maxSurge": "25%"})
    else:
        spec.setdefault("podManagementPolicy", "OrderedReady")
        spec.setdefault("persistentVolumeClaimRetentionPolicy", {"whenDeleted": "Retain", "whenScaled": "Retain"})
        _set_strategy(spec.setdefault("updateStrategy", {}), {"partition": 0})
    if isinstance(template := spec.get("template"), dict):
        set_spec_defaults(template.setdefault("spec", {}))
    if old is None:
        obj["status"] = {} if kind.kind == "Deployment" else {"replicas": 0, "availableReplicas": 0}


def _set_strategy(strategy: Object, defaults: Object) -> None:
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        strategy["rollingUpdate"] = {**defaults, **(strategy.get("rollingUpdate") or {})}


def check(api: Api, kind: Kind, obj: Object, old: Object | None, sub: str) -> Iterator[Cause]:
    causes = list(check_schema(obj, kind.structure, ""))
    yield from causes
    if causes or sub == "status":
        return
    spec = obj["spec"]
    if spec["replicas"] < 0:
        yield Cause("spec.replicas", f"Invalid value: {spec['replicas']}: must be greater than or equal to 0")
    yield from _check_selector(spec)
    yield from check_spec(spec["template"].get("spec") or {}, "spec.template.spec")
    if dig(spec, "template", "spec", "restartPolicy") != "Always":
        policy = shown(spec["template"]["spec"]["restartPolicy"])
        where = "spec.template.spec.restartPolicy"
        yield Cause(where, f'Unsupported value: {policy}: supported values: "Always"', "FieldValueNotSupported")
    if old is not None:
        yield from _check_change(kind, spec, old["spec"])


def _check_selector(spec: Object) -> Iterator[Cause]:
    selector, labels = spec["selector"], dig(spec, "template", "metadata", "labels", default={})
    if not selector:
        yield required("spec.selector")
    elif not matches(selector, labels):
        why = "`selector` does not match template `labels`"
        yield Cause("spec.template.metadata.labels", f"Invalid value: {shown(labels)}: {why}")


def _check_change(kind: Kind, spec: Object, before: Object) -> Iterator[Cause]:
    if kind.kind == "Deployment":
        if spec["selector"] != before["selector"]:
            yield Cause("spec.selector", f"Invalid value: {shown(spec['selector'])}: field is immutable")
        return
    free = (*_CHANGES, "persistentVolumeClaimRetentionPolicy")
    if any(spec.get(name) != before.get(name) for name in (spec.keys() | before.keys()) - set(free)):
        yield Cause("spec", _FIXED, "FieldValueForbidden")
