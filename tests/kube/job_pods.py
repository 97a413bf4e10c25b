"""The pods of a Job: what a new one is like, which are at work, and which completion index each has."""

from __future__ import annotations

from collections.abc import Iterable

from tests.kube.objects import Object, controller_of, copy, dig, finalizers, is_deleting, owner_reference
from tests.kube.verbs import suffix

INDEX = "batch.kubernetes.io/job-completion-index"
TRACKING = "batch.kubernetes.io/job-tracking"


def is_indexed(job: Object) -> bool:
    return bool(job["spec"].get("completionMode") == "Indexed")


def index_of(pod: Object) -> int:
    return int(dig(pod, "metadata", "annotations", INDEX, default=-1))


def phase(pod: Object) -> str:
    return str(dig(pod, "status", "phase", default="Pending"))


def is_over(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    return not is_over(pod) and not is_deleting(pod)


def is_terminating(pod: Object) -> bool:
    return not is_over(pod) and is_deleting(pod)


def is_ready(pod: Object) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    return is_active(pod) and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def waits_for_the_end(job: Object) -> bool:
    """A pod that is being deleted counts only once it has ended."""
    return bool(job["spec"].get("podReplacementPolicy") == "Failed")


def has_failed(job: Object, pod: Object) -> bool:
    if phase(pod) == "Failed":
        return True
    return not waits_for_the_end(job) and is_deleting(pod) and phase(pod) != "Succeeded"


def is_uncounted(pod: Object) -> bool:
    return TRACKING in finalizers(pod)


def belongs_to(pod: Object, job: Object) -> bool:
    owner = controller_of(pod)
    return owner is not None and owner["uid"] == job["metadata"]["uid"]


def new_pod(job: Object, index: int | None) -> Object:
    """From the template; of an Indexed Job with the index in its name, host name, labels and environment."""
    template, name = copy(job["spec"]["template"]), job["metadata"]["name"]
    meta = {**(template.get("metadata") or {})}
    meta["ownerReferences"] = [owner_reference(job)]
    meta["finalizers"] = [TRACKING, *(meta.get("finalizers") or [])]
    spec = template["spec"]
    if index is None:
        meta["name"] = f"{name}-{suffix()}"
    else:
        meta["name"] = f"{name}-{index}-{suffix()}"
        meta["labels"] = {**(meta.get("labels") or {}), INDEX: str(index)}
        meta["annotations"] = {**(meta.get("annotations") or {}), INDEX: str(index)}
        spec.setdefault("hostname", f"{name}-{index}")
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
            _tell_index(container)
    return {"metadata": meta, "spec": spec}


def _tell_index(container: Object) -> None:
    variables = container.setdefault("env", [])
    if not any(each["name"] == "JOB_COMPLETION_INDEX" for each in variables):
        source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}
        variables.append({"name": "JOB_COMPLETION_INDEX", "valueFrom": source})


def as_ranges(indexes: Iterable[int]) -> str:
    """`0-2,5`, as the status lists indexes."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def from_ranges(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
