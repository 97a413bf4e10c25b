"""The Job controller of the tests' cluster: pods are made, counted, replaced and stopped as by the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kube

from tests.kube.cluster import Cluster
from tests.kube.samples import gang, job
from tests.kube.waiting import eventually, gone
from tests.kube.work import DISRUPTED, NS, WAIT, ended, pods, reason, running, terminated

pytest_plugins = ("tests.kube.work_fixtures",)


def test_a_gang_completes(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    script = "echo rank $JOB_COMPLETION_INDEX of $HOSTNAME; echo done > /dev/termination-log"
    made = gang("j", script)
    made["spec"]["template"]["spec"]["subdomain"] = "j"
    batch.create_namespaced_job(NS, made)
    found = ended(batch)
    assert [one.type for one in found.status.conditions] == ["SuccessCriteriaMet", "Complete"]
    assert (found.status.succeeded, found.status.completed_indexes, found.status.active) == (2, "0-1", None)
    assert found.status.completion_time >= found.status.start_time
    for index, pod in enumerate(pods(core)):
        assert pod.metadata.name.startswith(f"j-{index}-")
        assert pod.spec.hostname == f"j-{index}"
        assert pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] == str(index)
        assert pod.metadata.labels["job-name"] == "j"
        assert pod.metadata.owner_references[0].uid == found.metadata.uid
        assert pod.metadata.finalizers is None
        assert terminated(pod).message == "done\n"
        assert core.read_namespaced_pod_log(pod.metadata.name, NS) == f"rank {index} of j-{index}\n"


def test_one_crash_fails_the_gang_and_stops_the_others(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    """The other pod is asked to stop, and is gone with its log before the Job counts as failed."""
    script = f'[ "$JOB_COMPLETION_INDEX" = 1 ] && {{ sleep 0.3; echo oops >&2; exit 3; }}; {WAIT}'
    batch.create_namespaced_job(NS, gang("j", script))
    found = ended(batch)
    assert [one.type for one in found.status.conditions] == ["FailureTarget", "Failed"]
    assert reason(found, "Failed") == "BackoffLimitExceeded"
    assert reason(found, "FailureTarget") == "BackoffLimitExceeded"
    assert not found.status.active
    assert not found.status.terminating
    left = pods(core)
    assert [(pod.metadata.name[:3], terminated(pod).exit_code) for pod in left] == [("j-1", 3)]
    assert terminated(left[0]).reason == "Error"


def test_failed_waits_for_the_pods_to_end(batch: kube.BatchV1Api, core: kube.CoreV1Api, tmp_path: Path) -> None:
    slow = f"trap 'sleep 1; exit 75' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
    crash = f"until [ -e {tmp_path}/up ]; do sleep 0.05; done; exit 42"
    policy = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}
    script = f'[ "$JOB_COMPLETION_INDEX" = 1 ] && {{ {crash}; }}; {slow}'
    batch.create_namespaced_job(NS, gang("j", script, podFailurePolicy=policy))

    def failing() -> Any:
        found = batch.read_namespaced_job("j", NS)
        return found if reason(found, "FailureTarget") and found.status.terminating else None

    found = eventually(failing)
    assert not reason(found, "Failed")
    assert {terminated(pod).exit_code for pod in pods(core) if terminated(pod)} == {42}
    assert reason(ended(batch), "Failed") == "PodFailurePolicy"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(42, "PodFailurePolicy"), (75, "PodFailurePolicy"), (1, "BackoffLimitExceeded")],
)
def test_exit_codes_decide(batch: kube.BatchV1Api, core: kube.CoreV1Api, code: int, expected: str) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [value]}} for value in (42, 75)]
    batch.create_namespaced_job(NS, job("j", f"exit {code}", podFailurePolicy={"rules": rules}))
    found = ended(batch)
    assert reason(found, "Failed") == expected
    if expected == "PodFailurePolicy":
        name, index = pods(core)[0].metadata.name, 0 if code == 42 else 1
        told = (
            f"Container main for pod default/{name} failed with exit code {code} matching FailJob rule at index {index}"
        )
        assert found.status.conditions[-1].message == told


def test_an_ignored_failure_does_not_count(batch: kube.BatchV1Api, core: kube.CoreV1Api, tmp_path: Path) -> None:
    rule = {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}}
    script = f"[ -e {tmp_path}/second ] && exit 0; touch {tmp_path}/second; exit 9"
    batch.create_namespaced_job(NS, job("j", script, podFailurePolicy={"rules": [rule]}))
    found = ended(batch)
    assert (reason(found, "Complete"), found.status.failed, found.status.succeeded) == ("CompletionsReached", None, 1)


def test_failures_are_tried_again_up_to_the_limit(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", "exit 1", backoffLimit=2))
    found = ended(batch)
    assert (found.status.failed, reason(found, "Failed")) == (3, "BackoffLimitExceeded")
    assert len(pods(core)) == 3


def test_an_eviction_says_so(cluster: Cluster, batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    batch.create_namespaced_job(NS, gang("j", WAIT, podFailurePolicy={"rules": [DISRUPTED]}))
    victim = running(core, 2)[0].metadata.name
    cluster.kubelet.evict(NS, victim)
    found = ended(batch)
    assert reason(found, "Failed") == "PodFailurePolicy"
    assert found.status.conditions[-1].message == (
        f"Pod default/{victim} has condition DisruptionTarget matching FailJob rule at index 0"
    )


def test_suspending_stops_the_pods_and_resuming_starts_new_ones(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", WAIT))
    first = running(core)[0].metadata.uid
    batch.patch_namespaced_job("j", NS, {"spec": {"suspend": True}})
    eventually(lambda: reason(batch.read_namespaced_job("j", NS), "Suspended") == "JobSuspended")
    eventually(lambda: not pods(core))
    suspended = batch.read_namespaced_job("j", NS)
    assert suspended.status.start_time is None
    assert not suspended.status.active
    batch.patch_namespaced_job("j", NS, {"spec": {"suspend": False}})
    assert running(core)[0].metadata.uid != first
    resumed = batch.read_namespaced_job("j", NS)
    assert resumed.status.start_time is not None
    assert [(one.status, one.reason) for one in resumed.status.conditions] == [("False", "JobResumed")]


def test_a_deadline_ends_a_job(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", WAIT, activeDeadlineSeconds=1))
    assert reason(ended(batch), "Failed") == "DeadlineExceeded"


def test_a_finished_job_goes_after_its_time(batch: kube.BatchV1Api, core: kube.CoreV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", "true", ttlSecondsAfterFinished=1))
    eventually(lambda: gone(lambda: batch.read_namespaced_job("j", NS)))
    eventually(lambda: not pods(core))


@pytest.mark.parametrize("propagation", ["Foreground", "Background"])
def test_a_deleted_job_takes_its_pods(batch: kube.BatchV1Api, core: kube.CoreV1Api, propagation: str) -> None:
    """In the foreground the Job is there until the last pod has stopped."""
    script = "trap 'sleep 0.5; exit 75' TERM; echo up; while true; do sleep 0.05; done"
    batch.create_namespaced_job(NS, job("j", script))
    name = running(core)[0].metadata.name
    eventually(lambda: core.read_namespaced_pod_log(name, NS) == "up\n")
    batch.delete_namespaced_job("j", NS, propagation_policy=propagation)
    if propagation == "Foreground":
        assert batch.read_namespaced_job("j", NS).metadata.finalizers == ["foregroundDeletion"]
        eventually(lambda: gone(lambda: batch.read_namespaced_job("j", NS)))
        assert not pods(core)
    else:
        assert gone(lambda: batch.read_namespaced_job("j", NS))
    eventually(lambda: not pods(core))


def test_without_its_account_a_pod_is_not_made(core: kube.CoreV1Api, batch: kube.BatchV1Api) -> None:
    batch.create_namespaced_job(NS, job("j", "true", pod={"serviceAccountName": "trainer"}))

    def told() -> bool:
        return any(event.reason == "FailedCreate" for event in core.list_namespaced_event(NS).items)

    eventually(told)
    core.create_namespaced_service_account(NS, {"metadata": {"name": "trainer"}})
    assert reason(ended(batch), "Complete")
