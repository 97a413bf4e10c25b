"""A Kubernetes cluster as a command reaches it: by a kubeconfig, or from inside by the pod's own account.

What the API answers to a wrong request becomes one sentence that names the thing: which address does not answer, which
right is missing to whom, which field is wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, list_kube_config_contexts, load_incluster_config, load_kube_config
from urllib3.exceptions import HTTPError

from cli.text import CommandError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FORBIDDEN = re.compile(r'User "(?P<who>[^"]*)" cannot (?P<verb>\S+) resource "(?P<what>[^"]*)"')
NO_CRD = (
    "the cluster does not know TrainingJobs: whoever runs it installs them with "
    "`kubectl apply --server-side -f deploy/operator/crd.yaml`"
)


@dataclass(frozen=True)
class Cluster:
    """A way in, and the namespace that commands are about."""

    api: ApiClient
    namespace: str
    address: str


def connect(kubeconfig: Path | None, context: str | None, namespace: str | None) -> Cluster:
    """Asks the cluster nothing yet. Raises CommandError without a usable configuration."""
    settings = Configuration()
    # A person waits for the answer, and can ask again.
    settings.retries = 0
    said = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    inside = not kubeconfig and context is None and "KUBECONFIG" not in os.environ and not Path(said).exists()
    try:
        if inside and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(settings)  # type: ignore[no-untyped-call]
            own = (ACCOUNT / "namespace").read_text("utf-8").strip() if (ACCOUNT / "namespace").exists() else None
        else:
            own = _load(said, context, settings)
    except ConfigException as error:
        raise CommandError(f"{said}: {str(error).removeprefix('Invalid kube-config file. ')}") from error
    return Cluster(ApiClient(settings), namespace or own or "default", str(settings.host))


def _load(said: str, context: str | None, settings: Configuration) -> str | None:
    """Fills the settings; the context's namespace."""
    if not any(Path(one).exists() for one in said.split(os.pathsep)):
        raise CommandError(
            f"no cluster to talk to: there is no {said}; name a kubeconfig with --kubeconfig or KUBECONFIG "
            "(without a cluster, `ziya train run FILE` trains on this machine)"
        )
    contexts, active = list_kube_config_contexts(said)  # type: ignore[no-untyped-call]
    names = [one["name"] for one in contexts]
    if context is not None and context not in names:
        raise CommandError(f"{said} has no context {context!r}; its contexts are {', '.join(names)}")
    load_kube_config(said, context, settings, persist_config=False)  # type: ignore[no-untyped-call]
    chosen = next((one for one in contexts if one["name"] == context), active)
    return cast("str | None", chosen["context"].get("namespace"))


@contextmanager
def plainly(cluster: Cluster, doing: str) -> Iterator[None]:
    """Turns what the API or the network says into CommandError. `doing`: "job x in namespace y"."""
    try:
        yield
    except ApiException as error:
        raise CommandError(_sentence(error, cluster, doing)) from error
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise CommandError(f"the cluster at {cluster.address} does not answer: {_short(reason)}") from error


def _sentence(error: ApiException, cluster: Cluster, doing: str) -> str:
    status = said_by(error)
    message, details = str(status.get("message") or error.reason), status.get("details") or {}
    if error.status == 401:
        return f"the cluster at {cluster.address} does not accept these credentials: log in again"
    if error.status == 403:
        return _forbidden(message, cluster)
    if error.status == 404:
        return _missing(details, cluster, doing)
    if error.status == 409 and status.get("reason") == "AlreadyExists":
        return f"there is a {doing} already: give this one another name, or delete that one (`kubectl delete ztj`)"
    causes = details.get("causes") if error.status in (400, 422) else None
    said = "".join(f"\n  {_cause(cause)}" for cause in causes or ()) or f" {message}"
    return f"the cluster refuses {doing}:{said}"


def _missing(details: Mapping[str, Any], cluster: Cluster, doing: str) -> str:
    """A name that is not there, a namespace that is not there, or a kind."""
    if details.get("kind") == "namespaces":
        return f"there is no namespace {cluster.namespace!r} on the cluster at {cluster.address}"
    return f"there is no {doing}" if details.get("name") else NO_CRD


def said_by(error: ApiException) -> Mapping[str, Any]:
    """The Status object of an answer; empty where something else than Kubernetes has answered."""
    try:
        status = json.loads(error.body or "")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _cause(cause: Mapping[str, Any]) -> str:
    field, message = str(cause.get("field", "")), str(cause.get("message", ""))
    # A rule over the whole object has no field of its own, and says in its sentence what is meant.
    sentence = re.sub(r'^Invalid value: "object": ', "", message)
    return sentence if field in ("", "<nil>") else f"{field}: {sentence}"


def _forbidden(message: str, cluster: Cluster) -> str:
    found = FORBIDDEN.search(message)
    if found is None:
        return f"the cluster at {cluster.address} does not allow it: {message}"
    return (
        f"no right to {found['verb']} {found['what']} in namespace {cluster.namespace}: the account {found['who']!r} "
        "needs a Role that gives it"
    )


def _short(reason: object) -> str:
    """Without the address of a Python object that urllib3 begins with."""
    return re.sub(r"^.*?object at 0x[0-9a-f]+>: |^\S*\(host=[^)]*\): ", "", str(reason))
