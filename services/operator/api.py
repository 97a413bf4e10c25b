"""One request to the Kubernetes API through the official client: its addresses, certificates, tokens and connections,
and plain dicts instead of its models, so that what the API sends back is kept whole, also by an older client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import load_incluster_config, new_client_from_config
from urllib3.exceptions import HTTPError

JSON, MERGE, APPLY = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"
METADATA = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PAGE = "250"
TIMEOUT = (3.0, 10.0)

Object = dict[str, Any]


class ApiError(Exception):
    """The API said no (`status` is HTTP's), or did not answer (0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def connect(kubeconfig: str) -> ApiClient:
    """By a kubeconfig, or as the pod's own account when it is empty. Raises kubernetes.config.ConfigException."""
    if kubeconfig:
        return cast("ApiClient", new_client_from_config(kubeconfig))  # type: ignore[no-untyped-call]
    settings = Configuration()
    load_incluster_config(settings)  # type: ignore[no-untyped-call]
    return ApiClient(settings)


class Api:
    """Not for several threads at once. All methods raise ApiError."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def get(self, path: str, **query: str) -> Object:
        return cast("Object", json.loads(self.read(path, **query)))

    def pages(self, path: str, accept: str = JSON, **query: str) -> Iterator[Object]:
        """All of a list, a page at a time, so that never the whole of it is in memory."""
        while True:
            page = json.loads(self._call("GET", path, query={**query, "limit": PAGE}, accept=accept))
            yield from page["items"]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    def read(self, path: str, **query: str) -> bytes:
        """What is not JSON: a log."""
        return self._call("GET", path, query=query)

    def create(self, path: str, body: Object) -> Object:
        return cast("Object", json.loads(self._call("POST", path, body)))

    def patch(self, path: str, body: Object, content: str = MERGE, **query: str) -> Object:
        return cast("Object", json.loads(self._call("PATCH", path, body, content, query)))

    def delete(self, path: str, uid: str, **options: Any) -> None:
        """Only the object of that uid."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}, **options}
        self._call("DELETE", path, body)

    def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content: str = JSON,
        query: Mapping[str, str] = {},
        *,
        accept: str = "*/*",
    ) -> bytes:
        headers = {"Accept": JSON, "Content-Type": content} if body is not None else {"Accept": accept}
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(*request, _request_timeout=TIMEOUT)
            data = cast("bytes", answer.read())  # type: ignore[no-untyped-call]
        except (ApiException, HTTPError) as error:
            raise ApiError(0, f"{method} {path}: {error}") from error
        if not 200 <= answer.status <= 299:
            raise ApiError(answer.status, _message(data, f"{method} {path}: {answer.status} {answer.reason}"))
        return data


def _message(data: bytes, otherwise: str) -> str:
    """The API's own sentence."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
