"""What the API makes of a Pod, or of the template of one: defaults, and what may not be missing or change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.kube.checking import check as check_schema
from tests.kube.checking import required, shown
from tests.kube.errors import Cause, forbidden
from tests.kube.kinds import Kind
from tests.kube.objects import Object, copy, dig

if TYPE_CHECKING:
    from tests.kube.verbs import Api

_FROZEN = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def prepare(kind: Kind, obj: Object, old: Object | None) -> None:
    spec = obj.setdefault("spec", {})
    set_spec_defaults(spec)
    spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = spec["serviceAccountName"]
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    if old is None:
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}


def set_spec_defaults(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    spec.setdefault("terminationGracePeriodSeconds", 30)
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        tag = str(container.get("image", "")).rpartition("/")[2].partition(":")[2]
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("resources", {})
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")
        for variable in container.get("env") or []:
            if source := dig(variable, "valueFrom", "fieldRef"):
                source.setdefault("apiVersion", "v1")
    for volume in spec.get("volumes") or []:
        for kind in ("projected", "configMap", "secret", "downwardAPI"):
            if isinstance(volume.get(kind), dict):
                volume[kind].setdefault("defaultMode", 420)
        for source in dig(volume, "projected", "sources", default=[]):
            if "serviceAccountToken" in source:
                source["serviceAccountToken"].setdefault("expirationSeconds", 3600)


def check_spec(spec: Object, path: str) -> Iterator[Cause]:
    """The faults of a pod's spec that manifests tend to have."""
    containers = spec.get("containers") or []
    if not containers:
        yield required(f"{path}.containers")
    volumes = {volume["name"] for volume in spec.get("volumes") or [] if "name" in volume}
    for list_name in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(list_name) or []):
            yield from _check_container(container, f"{path}.{list_name}[{index}]", volumes)
    yield from _check_tolerations(spec, path)
    for field in ("hostname", "subdomain"):
        if len(spec.get(field, "")) > 63:
            yield Cause(f"{path}.{field}", f"Invalid value: {shown(spec[field])}: must be no more than 63 bytes")


def _check_tolerations(spec: Object, path: str) -> Iterator[Cause]:
    for index, one in enumerate(spec.get("tolerations") or []):
        where, value, effect = f"{path}.tolerations[{index}]", one.get("value"), one.get("effect")
        if one.get("operator") == "Exists" and value:
            why = "value must be empty when `operator` is 'Exists'"
            yield Cause(f"{where}.operator", f"Invalid value: {shown(value)}: {why}")
        if one.get("operator") != "Exists" and not one.get("key"):
            why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            yield Cause(f"{where}.operator", f"Invalid value: {shown(one.get('operator', ''))}: {why}")
        if one.get("tolerationSeconds") is not None and effect != "NoExecute":
            why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            yield Cause(f"{where}.effect", f"Invalid value: {shown(effect or '')}: {why}")


def _check_container(container: Object, where: str, volumes: set[str]) -> Iterator[Cause]:
    for field in ("name", "image"):
        if not container.get(field):
            yield required(f"{where}.{field}")
    for index, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("name") not in volumes:
            name = shown(mount.get("name"))
            yield Cause(f"{where}.volumeMounts[{index}].name", f"Not found: {name}", "FieldValueNotFound")
        if not mount.get("mountPath"):
            yield required(f"{where}.volumeMounts[{index}].mountPath")
    resources = container.get("resources") or {}
    for name, asked in (resources.get("requests") or {}).items():
        limit = (resources.get("limits") or {}).get(name)
        if "/" in name and limit != asked:
            why = f"must be equal to {name} limit of {limit}"
            yield Cause(f"{where}.resources.requests", f"Invalid value: {shown(asked)}: {why}")


def check(api: Api, kind: Kind, obj: Object, old: Object | None, sub: str) -> Iterator[Cause]:
    yield from check_schema(obj, kind.structure, "")
    if sub == "status":
        return
    yield from check_spec(obj["spec"], "spec")
    if old is None:
        _check_account(api, kind, obj)
    elif sub != "binding" and _fixed(obj["spec"]) != _fixed(old["spec"]):
        yield Cause("spec", _FROZEN, "FieldValueForbidden")


def _fixed(spec: Object) -> Object:
    fixed = copy(spec)
    for name in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"):
        fixed.pop(name, None)
    for container in [*fixed.get("containers", []), *fixed.get("initContainers", [])]:
        container.pop("image", None)
    return fixed


def _check_account(api: Api, kind: Kind, obj: Object) -> None:
    namespace, account = obj["metadata"]["namespace"], obj["spec"]["serviceAccountName"]
    if api.store.get(("", "serviceaccounts"), (namespace, account)) is None:
        why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise forbidden(kind, obj["metadata"]["name"], why)
