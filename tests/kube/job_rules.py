"""What the API makes of a Job: its defaults, the labels by which it finds its pods, and what cannot be changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube.checking import check as check_schema
from tests.kube.checking import required, shown
from tests.kube.errors import Cause
from tests.kube.kinds import Kind
from tests.kube.objects import Object, copy, dig
from tests.kube.pod_rules import check_spec, set_spec_defaults

if TYPE_CHECKING:
    from tests.kube.verbs import Api

CONTROLLER_UID, JOB_NAME = "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"
_IMMUTABLE = ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy")


def prepare(kind: Kind, obj: Object, old: Object | None) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("completionMode", "NonIndexed")
    if spec["completionMode"] == "NonIndexed" and "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 2**31 - 1 if "backoffLimitPerIndex" in spec else 6)
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed")
    for rule in dig(spec, "podFailurePolicy", "rules", default=[]):
        for pattern in rule.get("onPodConditions") or []:
            pattern.setdefault("status", "True")
    template = spec.get("template")
    if template is None:
        return
    set_spec_defaults(template.setdefault("spec", {}))
    if old is None:
        obj.setdefault("status", {})
        if not spec.get("manualSelector"):
            _set_selector(obj, spec, template)


def _set_selector(obj: Object, spec: Object, template: Object) -> None:
    name, uid = obj["metadata"]["name"], obj["metadata"]["uid"]
    meta = template.setdefault("metadata", {})
    meta["labels"] = {
        **(meta.get("labels") or {}),
        CONTROLLER_UID: uid,
        JOB_NAME: name,
        "controller-uid": uid,
        "job-name": name,
    }
    spec["selector"] = {"matchLabels": {CONTROLLER_UID: uid}}


def check(api: Api, kind: Kind, obj: Object, old: Object | None, sub: str) -> Iterator[Cause]:
    causes = list(check_schema(obj, kind.structure, ""))
    yield from causes
    if causes or sub == "status":
        return
    yield from _check_spec(obj)
    if old is not None:
        yield from _check_change(old, obj)


def _check_spec(obj: Object) -> Iterator[Cause]:
    name, spec = obj["metadata"]["name"], obj["spec"]
    for field in ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if spec.get(field, 0) < 0:
            yield Cause(f"spec.{field}", f"Invalid value: {spec[field]}: must be greater than or equal to 0")
    pod = spec["template"]["spec"]
    yield from check_spec(pod, "spec.template.spec")
    if pod["restartPolicy"] == "Always":
        known = 'supported values: "OnFailure", "Never"'
        why = f'Unsupported value: "Always": {known}' if "restartPolicy" in pod else f"Required value: {known}"
        yield Cause("spec.template.spec.restartPolicy", why, "FieldValueNotSupported")
    if spec.get("podFailurePolicy") and pod["restartPolicy"] != "Never":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        given = shown(pod["restartPolicy"])
        yield Cause("spec.template.spec.restartPolicy", f"Invalid value: {given}: {why}")
    if spec["completionMode"] == "Indexed":
        if "completions" not in spec:
            yield required("spec.completions", "when completion mode is Indexed")
        last = f"{name}-{max(spec.get('completions', 1), 1) - 1}"
        if len(last) > 63:
            why = f"will not able to create pod with invalid DNS label: {last}"
            yield Cause("metadata.name", f"Invalid value: {shown(name)}: {why}")
    if len(name) > 63:
        yield Cause("spec.template.labels", f"Invalid value: {shown(name)}: must be no more than 63 bytes")
    if spec.get("podFailurePolicy") and spec["podReplacementPolicy"] != "Failed":
        why = 'Unsupported value: "TerminatingOrFailed": supported values: "Failed"'
        yield Cause("spec.podReplacementPolicy", why, "FieldValueNotSupported")


def _check_change(old: Object, new: Object) -> Iterator[Cause]:
    before, after = old["spec"], new["spec"]
    for field in _IMMUTABLE:
        if before.get(field) != after.get(field):
            yield _immutable(f"spec.{field}", after.get(field))
    template_before, template_after = before["template"], after["template"]
    if before.get("suspend") and not dig(old, "status", "startTime"):
        template_before, template_after = _rigid(template_before), _rigid(template_after)
    if template_before != template_after:
        yield _immutable("spec.template", after["template"])
    if before.get("completions") != after.get("completions"):
        elastic = after.get("completionMode") == "Indexed" and after.get("completions") == after.get("parallelism")
        if not elastic or before.get("completions") != before.get("parallelism"):
            yield _immutable("spec.completions", after.get("completions"))


def _rigid(template: Object) -> Object:
    """What of a template stays fixed even before a suspended Job has run: all but where its pods may go."""
    rigid = copy(template)
    for field in ("nodeSelector", "tolerations", "affinity", "schedulingGates"):
        rigid["spec"].pop(field, None)
    for field in ("labels", "annotations"):
        rigid.get("metadata", {}).pop(field, None)
    for container in rigid["spec"].get("containers", []):
        container.pop("resources", None)
    return rigid


def _immutable(path: str, value: object) -> Cause:
    return Cause(path, f"Invalid value: {shown(value)}: field is immutable")
