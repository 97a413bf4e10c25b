"""What the operator asks of a cluster, one request a method: what an account must be allowed to do is read off here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from services.operator.api import APPLY, JSON, METADATA, Api, ApiError, Object
from services.operator.children import CONTAINER, JOB_UID
from services.operator.resource import GROUP, KIND, PLURAL, VERSION

LOG_LINES = "40"


class Conflict(Exception):
    """Somebody wrote or deleted the object since it was read."""


class Refused(Exception):
    """The API will not have this object, or not from us, and will not have it a second later either."""


class Cluster:
    """All methods raise ApiError, beside what they say."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def training_job(self, namespace: str, name: str) -> Object | None:
        return _or_none(lambda: self._api.get(_path(namespace, name)))

    def training_jobs(self, namespace: str = "") -> Iterator[Object]:
        """Of one namespace, or of all."""
        return self._api.pages(_path(namespace))

    def children(self, namespace: str = "") -> Iterator[Object]:
        """The metadata of all Jobs and pods of TrainingJobs; the rest of them may be there or not."""
        where = f"/namespaces/{namespace}" if namespace else ""
        accept = f"{METADATA},{JSON}"
        yield from self._api.pages(f"/apis/batch/v1{where}/jobs", accept, labelSelector=JOB_UID)
        yield from self._api.pages(f"/api/v1{where}/pods", accept, labelSelector=JOB_UID)

    def patch_status(self, namespace: str, name: str, version: str, status: Object) -> str:
        """A merge patch on the version that was read; the new version. Raises Conflict."""
        body = {"metadata": {"resourceVersion": version}, "status": status}
        try:
            new = self._api.patch(f"{_path(namespace, name)}/status", body)
        except ApiError as error:
            if error.status in (404, 409):
                raise Conflict(f"{namespace}/{name} was written or deleted since it was read") from error
            raise
        return str(new["metadata"]["resourceVersion"])

    def apply_status(self, namespace: str, name: str, status: Object, manager: str) -> None:
        """Server-side apply: just the fields given, whatever the version is."""
        metadata = {"name": name, "namespace": namespace}
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata, "status": status}
        self._api.patch(f"{_path(namespace, name)}/status", body, APPLY, fieldManager=manager, force="true")

    def set_finalizers(self, namespace: str, name: str, finalizers: Sequence[str], version: str) -> None:
        """All of them, on the version given. Raises Conflict."""
        metadata = {"resourceVersion": version, "finalizers": list(finalizers)}
        try:
            self._api.patch(_path(namespace, name), {"metadata": metadata})
        except ApiError as error:
            if error.status == 409:
                raise Conflict(f"{namespace}/{name} was written since it was read") from error
            if error.status != 404:
                raise

    def delete_training_job(self, namespace: str, name: str, uid: str) -> None:
        _quietly(lambda: self._api.delete(_path(namespace, name), uid))

    def jobs_of(self, namespace: str, uid: str) -> list[Object]:
        found = self._api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs", labelSelector=f"{JOB_UID}={uid}")
        return cast("list[Object]", found["items"])

    def pods_of(self, namespace: str, uid: str) -> list[Object]:
        found = self._api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"{JOB_UID}={uid}")
        return cast("list[Object]", found["items"])

    def pod(self, namespace: str, name: str) -> Object | None:
        return _or_none(lambda: self._api.get(f"/api/v1/namespaces/{namespace}/pods/{name}"))

    def log_tail(self, namespace: str, pod: str) -> str:
        """The last lines, or nothing where there are none any more."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        try:
            return self._api.read(path, container=CONTAINER, tailLines=LOG_LINES).decode("utf-8", "replace")
        except ApiError:
            return ""

    def create_job(self, namespace: str, body: Object) -> None:
        """One that is there already is well: its name says what it is. Raises Refused."""
        _made(lambda: self._api.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", body))

    def create_service(self, namespace: str, body: Object) -> None:
        """As `create_job`."""
        _made(lambda: self._api.create(f"/api/v1/namespaces/{namespace}/services", body))

    def patch_job(self, namespace: str, name: str, body: Object) -> None:
        """A merge patch; a Job that is gone, or another one of that name, is left alone."""
        _quietly(lambda: self._api.patch(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", body))

    def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """The Job stays until its pods have ended."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"
        _quietly(lambda: self._api.delete(path, uid, propagationPolicy="Foreground"))

    def force_delete_pod(self, namespace: str, name: str, uid: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        _quietly(lambda: self._api.delete(path, uid, gracePeriodSeconds=0))

    def put_event(self, namespace: str, body: Object) -> None:
        """A new Event, or one more of the same. A namespace that is being deleted takes none, which is well."""
        path = f"/api/v1/namespaces/{namespace}/events"
        try:
            self._api.create(path, body)
        except ApiError as error:
            if error.status == 409:
                self._count_up(f"{path}/{body['metadata']['name']}", body)
            elif error.status not in (403, 404):
                raise

    def _count_up(self, path: str, body: Object) -> None:
        count = int(self._api.get(path).get("count") or 1) + 1
        self._api.patch(path, {"count": count, "lastTimestamp": body["lastTimestamp"], "message": body["message"]})

    def inference_service(self, namespace: str, name: str) -> Object | None:
        return _or_none(lambda: self._api.get(f"{_inference(namespace)}/{name}"))

    def create_inference_service(self, namespace: str, body: Object) -> None:
        """Raises Refused."""
        _made(lambda: self._api.create(_inference(namespace), body))

    def patch_inference_service(self, namespace: str, name: str, body: Object) -> None:
        """Raises Refused."""
        _made(lambda: self._api.patch(f"{_inference(namespace)}/{name}", body))

    def review_token(self, token: str, audience: str) -> Mapping[str, Any]:
        """The `status` of a TokenReview."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = self._api.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
        return cast("Mapping[str, Any]", answer.get("status") or {})


def _path(namespace: str, name: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}" + (f"/{name}" if name else "")


def _inference(namespace: str) -> str:
    return f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"


def _or_none(call: Callable[[], Object]) -> Object | None:
    try:
        return call()
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _quietly(call: Callable[[], object]) -> None:
    """What is gone already, or is not the one that was meant, needs nothing done."""
    try:
        call()
    except ApiError as error:
        if error.status not in (404, 409):
            raise


def _made(call: Callable[[], object]) -> None:
    try:
        call()
    except ApiError as error:
        if error.status in (400, 403, 404, 422):
            raise Refused(str(error)) from error
        if error.status != 409:
            raise
