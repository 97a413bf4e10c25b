"""What the contract tests ask through: a namespace of one's own, in a real cluster or in the tests' own.

With ZIYA_TEST_KUBECONFIG it is in that cluster, otherwise in a `Cluster`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client as kube
from kubernetes.client import ApiException

from tests.kube.objects import Object
from tests.kube.samples import GROUP

REAL = os.environ.get("ZIYA_TEST_KUBECONFIG")
PLACE = (GROUP, "v1alpha1")


@dataclass
class Space:
    """A namespace of one's own, and the calls of the official client in it."""

    api: kube.ApiClient
    name: str
    warning: str = ""

    @property
    def core(self) -> kube.CoreV1Api:
        return kube.CoreV1Api(self.api)

    @property
    def batch(self) -> kube.BatchV1Api:
        return kube.BatchV1Api(self.api)

    def request(
        self, method: str, path: str, body: Any = None, media: str = "application/json", **query: str
    ) -> Object:
        """Any request, answered as plain JSON."""
        serialized = self.api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": media},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self.api.call_api(*serialized)
        data, self.warning = answer.read(), answer.headers.get("Warning", "")
        if answer.status >= 400:
            raise ApiException(status=answer.status, reason=answer.reason, http_resp=answer, body=data.decode())
        decoded: Object = json.loads(data)
        return decoded

    def path(self, name: str = "", sub: str = "") -> str:
        steps = ["/apis", *PLACE, "namespaces", self.name, "gadgets", name, sub]
        return "/".join(step for step in steps if step)

    def create(self, body: Object, **query: str) -> Object:
        return self.request("POST", self.path(), body, **query)

    def read(self, name: str) -> Object:
        return self.request("GET", self.path(name))

    def merge(self, name: str, body: Object, sub: str = "", **query: str) -> Object:
        return self.request("PATCH", self.path(name, sub), body, "application/merge-patch+json", **query)

    def apply(self, body: Object, manager: str, sub: str = "", **query: str) -> Object:
        path = self.path(body["metadata"]["name"], sub)
        return self.request("PATCH", path, body, "application/apply-patch+yaml", fieldManager=manager, **query)

    def delete(self, name: str, **options: Any) -> Object:
        return self.request("DELETE", self.path(name), {"kind": "DeleteOptions", "apiVersion": "v1", **options})


def refused(error: pytest.ExceptionInfo[ApiException]) -> Object:
    """The Status object of a refusal."""
    body: Object = json.loads(error.value.body)
    assert (body["kind"], body["code"]) == ("Status", error.value.status)
    return body
