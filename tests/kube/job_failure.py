"""When a Job has failed: its policy about failed pods, its backoff limit, its deadline."""

from __future__ import annotations

from dataclasses import dataclass

from tests.kube.job_pods import phase
from tests.kube.objects import Object, dig

COUNT, IGNORE, FAIL_JOB = "Count", "Ignore", "FailJob"


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a failed pod. `message` names the rule, as the condition of the Job does."""

    action: str
    message: str = ""


def judge(job: Object, pod: Object) -> Verdict:
    """The first rule that matches decides; without one the failure counts."""
    if phase(pod) != "Failed":
        return Verdict(COUNT)
    for number, rule in enumerate(dig(job, "spec", "podFailurePolicy", "rules", default=[])):
        matched = _match_exit_codes(rule, pod) or _match_conditions(rule, pod)
        if matched:
            return Verdict(rule["action"], f"{matched} matching {rule['action']} rule at index {number}")
    return Verdict(COUNT)


def _named(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _match_exit_codes(rule: Object, pod: Object) -> str:
    wanted = rule.get("onExitCodes")
    if not wanted:
        return ""
    statuses = [
        *dig(pod, "status", "initContainerStatuses", default=[]),
        *dig(pod, "status", "containerStatuses", default=[]),
    ]
    for status in statuses:
        code = dig(status, "state", "terminated", "exitCode", default=0)
        if code == 0 or wanted.get("containerName", status["name"]) != status["name"]:
            continue
        if (code in wanted["values"]) == (wanted["operator"] == "In"):
            return f"Container {status['name']} for pod {_named(pod)} failed with exit code {code}"
    return ""


def _match_conditions(rule: Object, pod: Object) -> str:
    for wanted in rule.get("onPodConditions") or []:
        for one in dig(pod, "status", "conditions", default=[]):
            if one["type"] == wanted["type"] and one["status"] == wanted.get("status", "True"):
                return f"Pod {_named(pod)} has condition {one['type']}"
    return ""
