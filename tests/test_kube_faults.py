"""What tests can do to their cluster: switch parts off, lose answers, cut it off, read who used what."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes import client as kube
from kubernetes.client import ApiException

from tests.kube.cluster import Cluster
from tests.kube.samples import config_map, job
from tests.kube.waiting import eventually
from tests.kube.work import NS, pods

pytest_plugins = ("tests.kube.work_fixtures",)


def test_with_its_controllers_off_the_status_is_the_tests(tmp_path: Path) -> None:
    with Cluster(tmp_path, controllers=()) as cluster:
        batch, core = kube.BatchV1Api(cluster.client()), kube.CoreV1Api(cluster.client())
        batch.create_namespaced_job(NS, job("j", "true"))
        found = batch.patch_namespaced_job_status("j", NS, {"status": {"active": 3}})
        assert found.status.active == 3
        assert not pods(core)
        cluster.set_controllers("jobs")
        eventually(lambda: pods(core))


def test_a_lost_answer_is_a_write_nobody_knows_of(cluster: Cluster, core: kube.CoreV1Api) -> None:
    cluster.faults.lose_answers(verb="create", resource="configmaps", times=1)
    with pytest.raises(Exception, match=r"(?i)connection|closed|remote"):
        kube.CoreV1Api(no_retries(cluster)).create_namespaced_config_map(NS, config_map("a"))
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map(NS, config_map("a"))
    assert error.value.status == 409


def no_retries(cluster: Cluster) -> kube.ApiClient:
    client = cluster.client()
    client.rest_client.pool_manager.connection_pool_kw["retries"] = False
    return client


def test_faults_meet_whom_they_are_meant_for(cluster: Cluster, core: kube.CoreV1Api) -> None:
    cluster.faults.fail(503, verb="list", resource="pods", times=1)
    with pytest.raises(ApiException) as error:
        core.list_namespaced_pod(NS)
    assert error.value.status == 503
    assert core.list_namespaced_pod(NS).items == []
    cluster.faults.fail(429, verb="get", resource="jobs", retry_after=7)
    with pytest.raises(ApiException) as error:
        kube.BatchV1Api(no_retries(cluster)).read_namespaced_job("x", NS)
    assert (error.value.status, error.value.headers["Retry-After"]) == (429, "7")


def test_a_partition_is_healed(cluster: Cluster, core: kube.CoreV1Api) -> None:
    core.list_namespaced_pod(NS)
    with cluster.faults.partitioned(), pytest.raises(Exception, match=r"(?i)connection|refused|retries"):
        kube.CoreV1Api(no_retries(cluster)).list_namespaced_pod(NS)
    assert core.list_namespaced_pod(NS).items == []


def test_what_an_account_has_used_is_known(cluster: Cluster) -> None:
    client = cluster.client_as(NS, "watcher")
    with pytest.raises(ApiException):
        kube.BatchV1Api(client).patch_namespaced_job_status("j", NS, {})
    user = f"system:serviceaccount:{NS}:watcher"
    assert cluster.requests_of(user) == {("patch", "batch", "jobs/status", NS)}
    assert cluster.refused_of(user) == cluster.requests_of(user)
