"""The contract of a Kubernetes API, continued: Jobs, tokens, and who may do what."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client as kube
from kubernetes.client import ApiException

from tests.kube.samples import job
from tests.kube.space import Space, refused
from tests.kube.waiting import eventually

pytest_plugins = ("tests.kube.space_fixtures",)


def test_a_job_gets_the_defaults_of_its_kind(space: Space) -> None:
    made = space.batch.create_namespaced_job(space.name, job("j", "true", suspend=True, backoffLimit=None))
    spec, uid = made.spec, made.metadata.uid
    assert (spec.backoff_limit, spec.parallelism, spec.completions) == (6, 1, 1)
    assert (spec.completion_mode, spec.pod_replacement_policy) == ("NonIndexed", "TerminatingOrFailed")
    assert spec.selector.match_labels == {"batch.kubernetes.io/controller-uid": uid}
    assert spec.template.metadata.labels == {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "j",
        "controller-uid": uid,
        "job-name": "j",
    }
    container = spec.template.spec.containers[0]
    assert (container.termination_message_path, container.termination_message_policy) == (
        "/dev/termination-log",
        "File",
    )
    assert spec.template.spec.termination_grace_period_seconds == 30


def test_a_job_with_a_failure_policy_waits_for_its_pods(space: Space) -> None:
    policy = {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
    made = space.batch.create_namespaced_job(space.name, job("j", "true", suspend=True, podFailurePolicy=policy))
    assert made.spec.pod_replacement_policy == "Failed"
    assert made.spec.pod_failure_policy.rules[0].on_pod_conditions[0].status == "True"


def test_a_jobs_template_is_fixed_but_it_may_be_suspended(space: Space) -> None:
    space.batch.create_namespaced_job(space.name, job("j", "true", suspend=True))
    containers = [{"name": "main", "image": "other"}]
    with pytest.raises(ApiException) as error:
        space.batch.patch_namespaced_job("j", space.name, {"spec": {"template": {"spec": {"containers": containers}}}})
    assert refused(error)["details"]["causes"][0]["field"] == "spec.template"
    assert "field is immutable" in refused(error)["message"]
    with pytest.raises(ApiException) as error:
        space.batch.patch_namespaced_job("j", space.name, {"spec": {"completions": 3}})
    assert refused(error)["details"]["causes"][0]["field"] == "spec.completions"
    changed = space.batch.patch_namespaced_job("j", space.name, {"spec": {"parallelism": 3}})
    assert (changed.spec.parallelism, changed.metadata.generation) == (3, 2)


def test_an_indexed_job_says_how_many(space: Space) -> None:
    with pytest.raises(ApiException) as error:
        space.batch.create_namespaced_job(space.name, job("j", "true", completionMode="Indexed", suspend=True))
    assert refused(error)["details"]["causes"][0]["field"] == "spec.completions"


def test_the_name_of_a_pod_fits_into_63_characters(space: Space) -> None:
    spec = {"completionMode": "Indexed", "completions": 11, "suspend": True}
    with pytest.raises(ApiException) as error:
        space.batch.create_namespaced_job(space.name, job("j" * 61, "true", **spec))
    assert error.value.status == 422
    space.batch.create_namespaced_job(space.name, job("j" * 60, "true", **spec))


def test_unknown_fields_of_a_job_warn_or_are_refused(space: Space) -> None:
    body, path = job("j", "true", suspend=True, paralelism=2), f"/apis/batch/v1/namespaces/{space.name}/jobs"
    with pytest.raises(ApiException) as error:
        space.request("POST", path, body, fieldValidation="Strict")
    assert 'strict decoding error: unknown field "spec.paralelism"' in refused(error)["message"]
    assert "paralelism" not in space.request("POST", path, body, fieldValidation="Warn")["spec"]
    assert space.warning == '299 - "unknown field \\"spec.paralelism\\""'


def account(space: Space, name: str) -> kube.ApiClient:
    """A client as a service account of that name."""
    space.core.create_namespaced_service_account(space.name, {"metadata": {"name": name}})
    made = space.core.create_namespaced_service_account_token(name, space.name, {"spec": {"audiences": []}})
    configuration = kube.Configuration()
    theirs = space.api.configuration
    configuration.host, configuration.ssl_ca_cert = theirs.host, theirs.ssl_ca_cert
    configuration.api_key = {"authorization": f"Bearer {made.status.token}"}
    return kube.ApiClient(configuration)


def test_a_token_of_a_pod_names_it_while_it_is_there(space: Space) -> None:
    core, review = space.core, kube.AuthenticationV1Api(space.api).create_token_review
    gate = [{"name": "test.ziya.dev/never"}]
    container = {"name": "main", "image": "busybox"}
    pod = core.create_namespaced_pod(
        space.name, {"metadata": {"name": "p"}, "spec": {"containers": [container], "schedulingGates": gate}}
    )
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod.metadata.uid}
    wanted = {"audiences": ["progress"], "expirationSeconds": 600, "boundObjectRef": bound}
    token = core.create_namespaced_service_account_token("default", space.name, {"spec": wanted}).status.token

    def asked(audience: str) -> Any:
        return review({"spec": {"token": token, "audiences": [audience]}}).status

    found = asked("progress")
    assert found.authenticated
    assert found.user.username == f"system:serviceaccount:{space.name}:default"
    assert found.audiences == ["progress"]
    assert found.user.extra["authentication.kubernetes.io/pod-name"] == ["p"]
    assert found.user.extra["authentication.kubernetes.io/pod-uid"] == [pod.metadata.uid]
    assert not asked("another").authenticated
    core.delete_namespaced_pod("p", space.name, grace_period_seconds=0)
    eventually(lambda: not asked("progress").authenticated, seconds=90)


def test_a_token_of_nobody_is_unauthorized(space: Space) -> None:
    configuration = kube.Configuration()
    configuration.host, configuration.ssl_ca_cert = space.api.configuration.host, space.api.configuration.ssl_ca_cert
    configuration.api_key = {"authorization": "Bearer nonsense"}
    with kube.ApiClient(configuration) as client:
        with pytest.raises(ApiException) as error:
            kube.CoreV1Api(client).list_namespaced_pod(space.name)
        client.rest_client.pool_manager.clear()
    assert refused(error)["reason"] == "Unauthorized"


def test_an_account_may_do_what_its_role_says(space: Space) -> None:
    rbac = kube.RbacAuthorizationV1Api(space.api)
    client = account(space, "worker")
    core, batch = kube.CoreV1Api(client), kube.BatchV1Api(client)
    with pytest.raises(ApiException) as error:
        core.list_namespaced_pod(space.name)
    user = f"system:serviceaccount:{space.name}:worker"
    assert refused(error)["message"] == (
        f'pods is forbidden: User "{user}" cannot list resource "pods" in API group "" in the namespace "{space.name}"'
    )
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"], "resourceNames": ["mine"]},
    ]
    rbac.create_namespaced_role(space.name, {"metadata": {"name": "r"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "worker", "namespace": space.name}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    body = {"metadata": {"name": "b"}, "subjects": [subject], "roleRef": ref}
    rbac.create_namespaced_role_binding(space.name, body)
    eventually(lambda: core.list_namespaced_pod(space.name))
    for name, status in (("mine", 404), ("theirs", 403)):
        with pytest.raises(ApiException) as error:
            batch.read_namespaced_job(name, space.name)
        assert error.value.status == status
    with pytest.raises(ApiException) as error:
        batch.patch_namespaced_job_status("mine", space.name, {})
    assert 'cannot patch resource "jobs/status" in API group "batch"' in refused(error)["message"]
    client.rest_client.pool_manager.clear()
    client.close()


def test_a_service_keeps_what_it_was_given(space: Space) -> None:
    body = {"metadata": {"name": "s"}, "spec": {"clusterIP": "None", "selector": {"job-name": "j"}}}
    made = space.core.create_namespaced_service(space.name, body)
    assert (made.spec.type, made.spec.cluster_ip, made.spec.session_affinity) == ("ClusterIP", "None", "None")
