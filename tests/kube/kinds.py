"""Which kinds there are: those that every cluster serves, and those that CustomResourceDefinitions add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kube.objects import Object
from tests.kube.structure import ANYTHING, Structure, built_in

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, eq=False)
class Kind:
    """A resource as discovery tells of it. `counts` says that `metadata.generation` follows its spec."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    counts: bool = False
    verbs: tuple[str, ...] = VERBS
    structure: Structure = ANYTHING
    columns: tuple[Object, ...] = ()
    custom: bool = False
    stores: bool = True
    subresources: tuple[str, ...] = field(default=())

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """`jobs.batch`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified(self) -> str:
        """`Job.batch`, `Pod`."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def id(self) -> tuple[str, str]:
        """All versions of a kind share what is stored."""
        return self.group, self.plural


def _kind(group: str, kind: str, plural: str, version: str = "v1", **more: Any) -> Kind:
    return Kind(group, version, kind, plural, structure=built_in(group, version, kind), **more)


def _asked(group: str, kind: str, plural: str) -> Kind:
    """A question that is posted and answered, and never stored."""
    return _kind(group, kind, plural, namespaced=False, verbs=("create",), stores=False)


def built_in_kinds() -> Iterator[Kind]:
    """In the order in which kubectl is to look for a name."""
    rbac = "rbac.authorization.k8s.io"
    yield _kind("", "ConfigMap", "configmaps", short_names=("cm",))
    yield _kind("", "Event", "events", short_names=("ev",))
    yield _kind(
        "", "Namespace", "namespaces", namespaced=False, short_names=("ns",), status=True, subresources=("finalize",)
    )
    yield _kind("", "Node", "nodes", namespaced=False, short_names=("no",), status=True)
    yield _kind("", "PersistentVolumeClaim", "persistentvolumeclaims", short_names=("pvc",), status=True)
    more = ("log", "binding", "eviction")
    yield _kind(
        "", "Pod", "pods", short_names=("po",), categories=("all",), status=True, counts=True, subresources=more
    )
    yield _kind("", "Secret", "secrets")
    yield _kind("", "ServiceAccount", "serviceaccounts", short_names=("sa",), subresources=("token",))
    yield _kind("", "Service", "services", short_names=("svc",), categories=("all",), status=True)
    yield from _workloads()
    yield _kind("coordination.k8s.io", "Lease", "leases")
    yield from _network()
    yield _kind(rbac, "ClusterRoleBinding", "clusterrolebindings", namespaced=False)
    yield _kind(rbac, "ClusterRole", "clusterroles", namespaced=False)
    yield _kind(rbac, "RoleBinding", "rolebindings")
    yield _kind(rbac, "Role", "roles")
    crd: dict[str, Any] = {
        "short_names": ("crd", "crds"),
        "categories": ("api-extensions",),
        "status": True,
        "counts": True,
    }
    yield _kind(
        "apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False, **crd
    )
    yield _asked("authentication.k8s.io", "TokenReview", "tokenreviews")
    yield _asked("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
    yield _asked("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews")


def _workloads() -> Iterator[Kind]:
    of_all: dict[str, Any] = {"categories": ("all",), "status": True}
    scaled: dict[str, Any] = {**of_all, "counts": True, "subresources": ("scale",)}
    yield _kind("apps", "Deployment", "deployments", short_names=("deploy",), **scaled)
    yield _kind("apps", "StatefulSet", "statefulsets", short_names=("sts",), **scaled)
    yield _kind("batch", "Job", "jobs", **of_all, counts=True)
    autoscaler = "HorizontalPodAutoscaler"
    yield _kind("autoscaling", autoscaler, "horizontalpodautoscalers", "v2", short_names=("hpa",), **of_all)
    budgets = "poddisruptionbudgets"
    yield _kind("policy", "PodDisruptionBudget", budgets, short_names=("pdb",), status=True, counts=True)


def _network() -> Iterator[Kind]:
    yield _kind("discovery.k8s.io", "EndpointSlice", "endpointslices", counts=True)
    network = "networking.k8s.io"
    yield _kind(network, "Ingress", "ingresses", short_names=("ing",), status=True, counts=True)
    yield _kind(network, "NetworkPolicy", "networkpolicies", short_names=("netpol",), counts=True)


class Kinds:
    """All that are served now."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        for kind in built_in_kinds():
            self.add(kind)

    def add(self, kind: Kind) -> None:
        self._by_path[kind.group, kind.version, kind.plural] = kind

    def remove(self, group: str, plural: str) -> None:
        self._by_path = {path: kind for path, kind in self._by_path.items() if kind.id != (group, plural)}

    def at(self, group: str, version: str, plural: str) -> Kind | None:
        return self._by_path.get((group, version, plural))

    def __getitem__(self, resource: str) -> Kind:
        """The kind called `jobs.batch` or `pods`, in the version it was added with first."""
        plural, _, group = resource.partition(".")
        return next(kind for kind in self._by_path.values() if kind.id == (group, plural))

    def __iter__(self) -> Iterator[Kind]:
        return iter(list(self._by_path.values()))

    def of_owner(self, api_version: str, kind: str) -> Kind | None:
        return next((each for each in self if (each.api_version, each.kind) == (api_version, kind)), None)

    def groups(self) -> dict[str, list[str]]:
        """The versions of each group."""
        found: dict[str, list[str]] = {}
        for kind in self:
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return found
