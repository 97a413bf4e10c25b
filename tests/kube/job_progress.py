"""How far a Job is: what is missing, whether that is enough, and how its status says so."""

from __future__ import annotations

from tests.kube import job_pods
from tests.kube.objects import Object, condition, timestamp, with_condition


def missing(job: Object, status: Object, here: list[Object], room: int) -> list[int | None]:
    """Which indexes have no pod and are not done; for other Jobs, as many None as there are pods missing."""
    spec = job["spec"]
    completions = spec.get("completions")
    if not job_pods.is_indexed(job):
        if completions is not None:
            room = min(room, completions - status.get("succeeded", 0) - len(here))
        elif status.get("succeeded"):
            room = 0
        return [None] * max(room, 0)
    taken = {job_pods.index_of(pod) for pod in here} | job_pods.from_ranges(status.get("completedIndexes", ""))
    free: list[int | None] = [index for index in range(completions or 0) if index not in taken]
    return free[:room]


def is_successful(job: Object, status: Object, pods: list[Object]) -> bool:
    completions = job["spec"].get("completions")
    if completions is None:
        return status.get("succeeded", 0) > 0 and not any(job_pods.is_active(pod) for pod in pods)
    return bool(status.get("succeeded", 0) >= completions)


def tally(status: Object, pods: list[Object]) -> None:
    counts = {
        "active": sum(job_pods.is_active(pod) for pod in pods),
        "ready": sum(job_pods.is_ready(pod) for pod in pods),
        "terminating": sum(job_pods.is_terminating(pod) for pod in pods),
    }
    for name, count in counts.items():
        if count or name != "active":
            status[name] = count
        else:
            status.pop(name, None)


def finish(job: Object, status: Object, pods: list[Object]) -> None:
    """The interim condition becomes the final one when no pod does anything any more."""
    if any(not job_pods.is_over(pod) for pod in pods):
        return
    state = {"status": status}
    for interim, final in (("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")):
        why = condition(state, interim)
        if why is not None and why["status"] == "True":
            with_condition(status, final, "True", why.get("reason", ""), why.get("message", ""))
            if final == "Complete":
                status["completionTime"] = timestamp()
