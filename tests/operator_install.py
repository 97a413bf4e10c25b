"""What an administrator installs for the operator, taken away again: kinds, accounts, rights, a namespace.

All of it goes through the Kubernetes API. Whatever is not in the namespace has a name of this run alone, but for the
kinds, whose names are fixed: one that was there before is there afterwards as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import yaml
from kubernetes import client as kube
from kubernetes import utils
from kubernetes.client import ApiException

from tests.kube.objects import Object, is_deleting, is_true
from tests.kube.space import Space
from tests.kube.waiting import eventually, gone
from tests.operator_objects import GROUP, INFERENCE_SERVICES, MERGE, PLURAL
from tests.operator_programs import ACCOUNTS, ROOT, WATCHER, WORKER

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# The one role whose rights are not in any namespace (deploy/operator/rbac.yaml).
CLUSTER_WIDE = "ziya-operator-cluster"
WATCHERS, WORKERS, TRAINER = ACCOUNTS[WATCHER], ACCOUNTS[WORKER], "ziya-trainer"
_JSON_PATCH = "application/json-patch+json"


def documents(file: str) -> list[Object]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "operator" / file).read_text("utf-8")))


@contextmanager
def kinds(api: kube.ApiClient) -> Iterator[None]:
    """TrainingJobs with the definition of this tree, and InferenceServices if there are none, are served."""
    with definition(api, documents("crd.yaml")[0], ours=True), definition(api, INFERENCE_SERVICES, ours=False):
        yield


@contextmanager
def definition(api: kube.ApiClient, body: Object, *, ours: bool) -> Iterator[None]:
    """One that is there is left alone, or, if it is `ours`, has our spec meanwhile."""
    asked, name = Space(api, ""), body["metadata"]["name"]
    eventually(lambda: not is_deleting(_found(asked, name) or body), seconds=90)  # of a run before this one
    before = _found(asked, name)
    if before is None:
        asked.request("POST", DEFINITIONS, body)
    elif ours:
        _respecify(asked, name, body["spec"])
    eventually(lambda: _is_served(asked, body, ours), seconds=60)
    yield
    if before is None:
        asked.request("DELETE", f"{DEFINITIONS}/{name}")
        eventually(lambda: _found(asked, name) is None, seconds=90)
    elif ours:
        _respecify(asked, name, before["spec"])


def _found(asked: Space, name: str) -> Object | None:
    found = asked.request("GET", DEFINITIONS, fieldSelector=f"metadata.name={name}")["items"]
    return next(iter(found), None)


def _respecify(asked: Space, name: str, spec: Object) -> None:
    asked.request("PATCH", f"{DEFINITIONS}/{name}", [{"op": "replace", "path": "/spec", "value": spec}], _JSON_PATCH)


def _is_served(asked: Space, body: Object, ours: bool) -> bool:
    """Also by discovery, which comes a little later; of our own kind with the rules that it has now."""
    spec, name = body["spec"], body["metadata"]["name"]
    if not is_true(asked.request("GET", f"{DEFINITIONS}/{name}"), "Established"):
        return False
    groups = [one["name"] for one in asked.request("GET", "/apis")["groups"]]
    place = f"/apis/{spec['group']}/{spec['versions'][0]['name']}"
    plural = spec["names"]["plural"]
    served = spec["group"] in groups and plural in [one["name"] for one in asked.request("GET", place)["resources"]]
    return served and bool(asked.request("GET", f"{place}/{plural}")) and (not ours or _has_rules(asked))


def _has_rules(asked: Space) -> bool:
    """A name that is too long is refused by our rule alone."""
    stage = {"name": "a", "type": "eval"}
    spec = {"model": {"checkpoint": "initial"}, "stages": [stage]}
    body = {"apiVersion": "/".join(GROUP), "kind": "TrainingJob", "metadata": {"name": "n" * 41}, "spec": spec}
    try:
        asked.request("POST", f"/apis/{'/'.join(GROUP)}/namespaces/default/{PLURAL}", body, dryRun="All")
    except ApiException as error:
        return error.status == 422 and "at most 40 characters" in str(error.body)
    return False


class Installation:
    """A new namespace with the operator's accounts and rights in it. `folder` is for their kubeconfigs."""

    def __init__(self, api: kube.ApiClient, namespace: str, folder: Path) -> None:
        self.api, self.namespace, self._folder = api, namespace, folder
        self._space = Space(api, namespace)
        self._roles: list[str] = []

    def install(self) -> None:
        self._space.request("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        for document in documents("rbac.yaml"):
            utils.create_from_dict(self.api, self._rewritten(document))  # type: ignore[no-untyped-call]
        for account, verb, resource, group in (
            (WATCHERS, "list", PLURAL, GROUP[0]),
            (WORKERS, "create", "jobs", "batch"),
        ):
            eventually(partial(self.may, account, verb, resource, group), seconds=60)

    def may(self, account: str, verb: str, resource: str, group: str = "") -> bool:
        """What the cluster's authorizer says of an account of ours, in our namespace."""
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        user = f"system:serviceaccount:{self.namespace}:{account}"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
        body = {"spec": {"user": user, "groups": groups, "resourceAttributes": asked}}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self._space.request("POST", path, body)["status"]["allowed"])

    def token(self, account: str, pod: Object | None = None, audience: str = "") -> str:
        """By the TokenRequest API; for a pod as the kubelet asks for it. Without an audience it is the API server's."""
        wanted: Object = {"audiences": [audience] if audience else [], "expirationSeconds": 7200}
        if pod is not None:
            meta = pod["metadata"]
            wanted["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        return str(self._space.request("POST", path, {"spec": wanted})["status"]["token"])

    @contextmanager
    def without(self, group: str, resource: str, verb: str) -> Iterator[None]:
        """The worker lacks this right meanwhile."""
        path = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{self._own(WORKERS)}"
        before = self._space.request("GET", path)["rules"]

        def kept(rule: Object) -> Object:
            named = group in rule["apiGroups"] and resource in rule["resources"]
            return {**rule, "verbs": [one for one in rule["verbs"] if one != verb]} if named else rule

        self._space.request("PATCH", path, {"rules": [kept(rule) for rule in before]}, MERGE)
        try:
            eventually(lambda: not self.may(WORKERS, verb, resource, group), seconds=60)
            yield
        finally:
            self._space.request("PATCH", path, {"rules": before}, MERGE)
            eventually(lambda: self.may(WORKERS, verb, resource, group), seconds=60)

    def remove(self) -> None:
        """Also what would keep the namespace from going, and where nobody else empties it."""
        rbac = kube.RbacAuthorizationV1Api(self.api)
        for kind in ("cluster_role_binding", "cluster_role"):
            for name in self._roles:
                with suppress(ApiException):  # not all roles are bound cluster-wide
                    getattr(rbac, f"delete_{kind}")(name)
        self._let_go()
        core, name = self._space.core, self.namespace
        self._space.batch.delete_collection_namespaced_job(name, propagation_policy="Background")
        core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        core.delete_namespace(name)
        try:
            eventually(lambda: gone(lambda: core.read_namespace(name)), seconds=30, pause=0.1)
        except AssertionError:  # no controller of namespaces runs
            left = self._space.request("GET", f"/api/v1/namespaces/{name}")
            left["spec"]["finalizers"] = []
            self._space.request("PUT", f"/api/v1/namespaces/{name}/finalize", left)

    def _let_go(self) -> None:
        place = f"/apis/{'/'.join(GROUP)}/namespaces/{self.namespace}/{PLURAL}"
        for job in self._space.request("GET", place)["items"]:
            path = f"{place}/{job['metadata']['name']}"
            with suppress(ApiException):  # it has gone meanwhile
                self._space.request("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)
                self._space.request("DELETE", path)

    def _own(self, name: str) -> str:
        return f"{name}-{self.namespace}"

    def _rewritten(self, document: Object) -> Object:
        """With our names; what is bound in all namespaces is bound in ours alone, as the file says one may."""
        meta = dict(document["metadata"])
        if document["kind"] == "ServiceAccount":
            return {**document, "metadata": {**meta, "namespace": self.namespace}}
        self._roles.append(self._own(meta["name"]))
        meta["name"] = self._own(meta["name"])
        if document["kind"] == "ClusterRole":
            return {**document, "metadata": meta}
        role = document["roleRef"]["name"]
        bound: Object = {"roleRef": {**document["roleRef"], "name": self._own(role)}}
        bound["subjects"] = [{**one, "namespace": self.namespace} for one in document["subjects"]]
        if role != CLUSTER_WIDE:
            bound |= {"kind": "RoleBinding"}
            meta["namespace"] = self.namespace
        return {**document, **bound, "metadata": meta}

    def kubeconfig(self, account: str) -> Path:
        how = self.api.configuration
        cluster: Object = {"server": how.host, "insecure-skip-tls-verify": not how.verify_ssl}
        if how.ssl_ca_cert and how.verify_ssl:
            # The client keeps it in a file that goes with this process.
            shutil.copy(how.ssl_ca_cert, self._folder / "cluster-ca.crt")
            cluster["certificate-authority"] = str(self._folder / "cluster-ca.crt")
        if how.tls_server_name:
            cluster["tls-server-name"] = how.tls_server_name
        place = {"cluster": "test", "user": account, "namespace": self.namespace}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": account, "user": {"token": self.token(account)}}],
            "contexts": [{"name": "test", "context": place}],
        }
        path = self._folder / f"{account}.kubeconfig"
        path.touch(0o600)
        path.write_text(yaml.safe_dump(document), "utf-8")
        return path
