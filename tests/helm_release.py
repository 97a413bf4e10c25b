"""A release of the chart on an API server: what Helm did there, read back over the API and held against the templates.

Nothing here waits for containers: there may be no kubelet.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kubernetes import client as kube
from kubernetes.client import ApiException

from tests.helm import CHART, HELMS, Case, Refused, given, helm, objects
from tests.kube.objects import Object
from tests.kube.space import Space
from tests.kube.waiting import eventually, gone
from tests.subset import differences

DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.ziya.dev"
_EVENTS = ("events",)


class Place(NamedTuple):
    """Where to install: the official client and the file that Helm and kubectl take."""

    api: kube.ApiClient
    kubeconfig: Path


class Resource(NamedTuple):
    """A kind as discovery tells of it; `place` is /api/v1 or /apis/GROUP/VERSION."""

    place: str
    plural: str
    kind: str
    namespaced: bool

    def path(self, namespace: str = "", name: str = "") -> str:
        space = f"namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(step for step in (self.place, space, self.plural, name) if step)


def versions(asked: Space) -> list[str]:
    """All groups in all their versions, as `apiVersion` names them."""
    groups = asked.request("GET", "/apis")["groups"]
    return [one["groupVersion"] for group in groups for one in group["versions"]]


def resources(api: kube.ApiClient) -> Iterator[Resource]:
    """Everything that can be listed and deleted, in all versions. A group whose server is away (503) is left out."""
    asked = Space(api, "")
    for place in ("/api/v1", *(f"/apis/{version}" for version in versions(asked))):
        try:
            told = asked.request("GET", place)["resources"]
        except ApiException as error:
            if error.status != 503:
                raise
            continue
        for one in told:
            if "/" not in one["name"] and {"list", "delete"} <= set(one["verbs"]):
                yield Resource(place, one["name"], one["kind"], one["namespaced"])


class Release:
    """One namespace and one name of a release, both of this run alone. `with` removes all of it in the end."""

    def __init__(self, program: str, place: Place, case: Case) -> None:
        self.program, self.api, self.case, self.chart = program, place.api, case, CHART
        self.name, self.namespace = (f"{word}-{uuid.uuid4().hex[:8]}" for word in ("rel", "chart"))
        self._where = ["--kubeconfig", str(place.kubeconfig), "--namespace", self.namespace]
        self._asked = Space(place.api, self.namespace)

    def __enter__(self) -> Release:
        self._asked.core.create_namespace({"metadata": {"name": self.namespace}})
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Refused):  # it is not there any more
            self.helm("uninstall", self.name)
        core, path = self._asked.core, f"/api/v1/namespaces/{self.namespace}"
        core.delete_namespace(self.namespace)
        try:
            eventually(lambda: gone(lambda: core.read_namespace(self.namespace)), seconds=30, pause=0.1)
        except AssertionError:  # no controller of namespaces runs
            left = self._asked.request("GET", path)
            left["spec"]["finalizers"] = []
            self._asked.request("PUT", f"{path}/finalize", left)

    def helm(self, *words: str) -> str:
        return helm(self.program, *self._where, *words)

    def command(self, *words: str) -> list[str]:
        """For what has to run beside the test."""
        return [str(HELMS[self.program]), *self._where, *words]

    def install(self) -> str:
        return self.helm("install", self.name, str(self.chart), *given(self.case))

    def upgrade(self, **values: Any) -> str:
        """With these values over the case's, from now on: a dotted name has __ for its dots."""
        changed = {name.replace("__", "."): value for name, value in values.items()}
        case = Case(self.case.file, {**self.case.values, **changed})
        told = self.helm("upgrade", self.name, str(self.chart), *given(case))
        self.case = case
        return told

    def rendered(self, case: Case | None = None) -> list[Object]:
        """What `helm template` makes of these values for this server, without what only `helm test` makes."""
        version = self._asked.request("GET", "/version")["gitVersion"]
        words = [word for one in versions(self._asked) for word in ("--api-versions", one)]
        words += ["--namespace", self.namespace, "--kube-version", version, *given(case or self.case)]
        return [
            one for one in objects(helm(self.program, "template", self.name, str(self.chart), *words)) if not _hook(one)
        ]

    def manifest(self) -> list[Object]:
        return objects(self.helm("get", "manifest", self.name))

    def live(self, one: Object) -> Object:
        """Raises ApiException with the status 404 where there is none."""
        return self._asked.request("GET", self.path(one))

    def path(self, one: Object) -> str:
        version, meta = one["apiVersion"], one["metadata"]
        place = f"/apis/{version}" if "/" in version else f"/api/{version}"
        kinds = [each for each in self._kinds() if (each.place, each.kind) == (place, one["kind"])]
        return kinds[0].path(meta.get("namespace", ""), meta["name"])

    def _kinds(self) -> list[Resource]:
        if not hasattr(self, "_known"):
            self._known = list(resources(self.api))
        return self._known

    def check(self) -> list[Object]:
        """All that is rendered is there, field by field, and is what Helm says it has installed. The objects."""
        wanted = self.rendered()
        assert {_key(one) for one in self.manifest()} == {_key(one) for one in wanted}
        wrong = [f"{_key(one)}{text}" for one in wanted for text in differences(one, self.live(one))]
        assert not wrong, "\n".join(wrong)
        return wanted

    def check_gone(self, left: list[Object]) -> None:
        for one in left:
            eventually(partial(gone, partial(self.live, one)), seconds=60)

    def labelled(self) -> set[str]:
        """Whatever in the cluster says that it is of this release; events say what was."""
        found = set()
        for kind in self._kinds():
            if kind.plural not in _EVENTS:
                found |= self._matching(kind.path(), f"app.kubernetes.io/instance={self.name}")
        return found | self._matching(f"/api/v1/namespaces/{self.namespace}/secrets", f"owner=helm,name={self.name}")

    def _matching(self, path: str, labels: str) -> set[str]:
        items = self._asked.request("GET", path, labelSelector=labels)["items"]
        return {f"{path}/{one['metadata']['name']}" for one in items}


class Releases:
    """Makes them, and takes them away at the end of the test, however it ends."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        self.place, self._stack = place, stack

    def __call__(self, program: str, case: Case) -> Release:
        return self._stack.enter_context(Release(program, self.place, case))


def changed(before: list[Object], after: list[Object]) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """What is no longer rendered, and what is new."""
    was, now = {_key(one) for one in before}, {_key(one) for one in after}
    return was - now, now - was


def named(found: list[Object], keys: set[tuple[str, ...]]) -> list[Object]:
    return [one for one in found if _key(one) in keys]


def _key(one: Object) -> tuple[str, ...]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def _hook(one: Object) -> bool:
    return "helm.sh/hook" in one["metadata"].get("annotations", {})
