"""The columns in which the real server shows the kinds that it knows by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.kube.objects import Object, dig, is_deleting, is_true, parse_time, seconds_since


@dataclass(frozen=True)
class Column:
    """`priority` above 0 is shown only when asked for wide output."""

    name: str
    cell: Callable[[Object], Any]
    priority: int = 0
    type: str = "string"
    format: str = ""
    description: str = ""

    def definition(self) -> Object:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


# Below how many seconds which unit is shown, and with which smaller one beside it.
_FORMS = (
    (120, 1, "s", 0, ""),
    (600, 60, "m", 1, "s"),
    (3 * 3600, 60, "m", 0, ""),
    (8 * 3600, 3600, "h", 60, "m"),
    (48 * 3600, 3600, "h", 0, ""),
    (8 * 86400, 86400, "d", 3600, "h"),
    (730 * 86400, 86400, "d", 0, ""),
)


def human(seconds: float) -> str:
    """A length of time in at most two units, coarser the longer it is."""
    whole = max(int(seconds), 0)
    for limit, unit, name, smaller, its_name in _FORMS:
        if whole < limit:
            rest = whole % unit // smaller if smaller else 0
            return f"{whole // unit}{name}" + (f"{rest}{its_name}" if rest else "")
    return f"{whole // (365 * 86400)}y"


def since(text: str) -> str:
    try:
        return human(seconds_since(text))
    except ValueError:
        return "<unknown>"


def _pod_status(pod: Object) -> str:
    status: str = dig(pod, "status", "reason") or dig(pod, "status", "phase", default="Pending")
    for container in dig(pod, "status", "containerStatuses", default=[]):
        for state in ("waiting", "terminated"):
            status = dig(container, "state", state, "reason", default=status)
    return "Terminating" if is_deleting(pod) and status not in ("Completed", "Error") else status


def _pod_ready(pod: Object) -> str:
    states = dig(pod, "status", "containerStatuses", default=[])
    return f"{sum(bool(each['ready']) for each in states)}/{len(pod['spec']['containers'])}"


def _job_status(job: Object) -> str:
    for kind in ("Complete", "Failed"):
        if is_true(job, kind):
            return kind
    if is_deleting(job):
        return "Terminating"
    for kind in ("Suspended", "FailureTarget", "SuccessCriteriaMet"):
        if is_true(job, kind):
            return kind
    return "Running"


def _job_completions(job: Object) -> str:
    done, wanted = dig(job, "status", "succeeded", default=0), dig(job, "spec", "completions")
    return f"{done}/{wanted if wanted is not None else '1 of ' + str(dig(job, 'spec', 'parallelism', default=1))}"


def _job_duration(job: Object) -> str:
    start, end = dig(job, "status", "startTime"), dig(job, "status", "completionTime")
    if not start:
        return ""
    return human((parse_time(end) - parse_time(start)).total_seconds()) if end else since(start)


def _ports(service: Object) -> str:
    ports = dig(service, "spec", "ports", default=[])
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports) or "<none>"


def _about(event: Object) -> str:
    about = event["involvedObject"]
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _node_status(node: Object) -> str:
    return "Ready" if is_true(node, "Ready") else "NotReady"


def _at(*path: str | int, default: Any = "") -> Callable[[Object], Any]:
    return lambda obj: dig(obj, *path, default=default)


def _names(field: str) -> Callable[[Object], str]:
    return lambda obj: ",".join(str(each.get(field, "")) for each in dig(obj, "spec", "template", "spec", "containers"))


NAME = Column("Name", _at("metadata", "name"), format="name", description="Name must be unique within a namespace.")
AGE = Column("Age", lambda obj: since(obj["metadata"]["creationTimestamp"]))
GENERIC = [NAME, Column("Age", AGE.cell, type="date")]
BUILT_IN: dict[str, list[Column]] = {
    "pods": [
        NAME,
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", lambda pod: 0, type="integer"),
        AGE,
        Column("IP", _at("status", "podIP", default="<none>"), 1),
        Column("Node", _at("spec", "nodeName", default="<none>"), 1),
    ],
    "jobs": [
        NAME,
        Column("Status", _job_status),
        Column("Completions", _job_completions),
        Column("Duration", _job_duration),
        AGE,
        Column("Containers", _names("name"), 1),
        Column("Images", _names("image"), 1),
    ],
    "services": [
        NAME,
        Column("Type", _at("spec", "type")),
        Column("Cluster-IP", _at("spec", "clusterIP")),
        Column("External-IP", lambda service: "<none>"),
        Column("Port(s)", _ports),
        AGE,
    ],
    "events": [
        Column("Last Seen", lambda event: since(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _about),
        Column("Message", _at("message")),
    ],
    "namespaces": [NAME, Column("Status", _at("status", "phase")), AGE],
    "nodes": [NAME, Column("Status", _node_status), AGE, Column("Version", lambda node: "v1.36.2")],
    "configmaps": [NAME, Column("Data", lambda obj: len(obj.get("data") or {}), type="integer"), AGE],
    "secrets": [NAME, Column("Type", _at("type")), Column("Data", lambda obj: len(obj.get("data") or {})), AGE],
    "leases": [NAME, Column("Holder", _at("spec", "holderIdentity")), AGE],
    "persistentvolumeclaims": [NAME, Column("Status", _at("status", "phase")), AGE],
    "customresourcedefinitions": [NAME, Column("Created At", _at("metadata", "creationTimestamp"), type="date")],
}
