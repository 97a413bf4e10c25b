"""Makes an API server ask the tests' own adapter for metrics: APIServices, a Service, and where it leads.

The adapter is on this host: at the address in ZIYA_TEST_METRICS_ADDRESS, or the one from which this host reaches the
API server. An API server that routes to Services by their cluster address, and has no proxy for those, cannot use an
EndpointSlice; it can use an external name, which is tried second.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from kubernetes.client import ApiException

from tests.kube.objects import Object, is_true
from tests.kube.space import Space
from tests.kube.waiting import eventually, gone
from tests.metrics_api import CUSTOM, EXTERNAL

_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
_NAME = "ziya-metrics"
_SECONDS = 45.0


class Unusable(Exception):
    """Why this cluster cannot have metrics of ours."""


@contextmanager
def registered(space: Space, port: int) -> Iterator[str]:
    """While it lasts; how the API server was led here. Raises Unusable, and leaves nothing in any case."""
    with _apis(space, port):
        yield _way(space, port)


@contextmanager
def _apis(space: Space, port: int) -> Iterator[None]:
    made: list[str] = []
    try:
        for group, version in (CUSTOM, EXTERNAL):
            _register(space, group, version, port)
            made.append(f"{_SERVICES}/{version}.{group}")
        yield
    finally:
        for path in made:
            space.request("DELETE", path)
            eventually(lambda path=path: gone(lambda: space.request("GET", path)), seconds=60)
        _remove_service(space)


def _register(space: Space, group: str, version: str, port: int) -> None:
    spec: Object = {
        "group": group,
        "version": version,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"namespace": space.name, "name": _NAME, "port": port},
    }
    meta = {"name": f"{version}.{group}"}
    body = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": spec}
    try:
        if any(one["spec"]["group"] == group for one in space.request("GET", _SERVICES)["items"]):
            raise Unusable(f"the cluster has an adapter for {group} already")
        space.request("POST", _SERVICES, body)
    except ApiException as error:
        if error.status in (403, 404):
            raise Unusable(f"APIServices cannot be registered here: {error.status} {error.reason}") from error
        raise


def _way(space: Space, port: int) -> str:
    address = _address(space)
    for name, make in (("an EndpointSlice", _slice), ("an external name", _external_name)):
        if name == "an EndpointSlice" and ip_address(address).is_loopback:
            continue  # no such address may be in one
        _remove_service(space)
        make(space, address, port)
        with suppress(AssertionError):
            eventually(lambda: all(_available(space, *one) for one in (CUSTOM, EXTERNAL)), seconds=_SECONDS, pause=1)
            return name
    told = [
        space.request("GET", f"{_SERVICES}/{version}.{group}").get("status") for group, version in (CUSTOM, EXTERNAL)
    ]
    raise Unusable(f"the API server does not reach {address}:{port}: set ZIYA_TEST_METRICS_ADDRESS; {told}")


def _available(space: Space, group: str, version: str) -> bool:
    """By its condition, and by an answer that comes from here."""
    if not is_true(space.request("GET", f"{_SERVICES}/{version}.{group}"), "Available"):
        return False
    return bool(space.request("GET", f"/apis/{group}/{version}")["resources"])


def _address(space: Space) -> str:
    if given := os.environ.get("ZIYA_TEST_METRICS_ADDRESS"):
        return given
    place = urlsplit(space.api.configuration.host)
    known = socket.getaddrinfo(place.hostname, place.port or 443, type=socket.SOCK_DGRAM)[0]
    own = _source(known[0], known[4])
    return own if not ip_address(own).is_loopback else _source(socket.AF_INET, ("192.0.2.1", 443))


def _source(family: int, target: object) -> str:
    """Of packets to there; none is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:  # no way out of this host
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _slice(space: Space, address: str, port: int) -> None:
    """Behind a Service without a selector."""
    ports = [{"name": "https", "port": port, "protocol": "TCP"}]
    space.core.create_namespaced_service(space.name, {"metadata": {"name": _NAME}, "spec": {"ports": ports}})
    body: Object = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
    body["metadata"] = {"name": f"{_NAME}-here", "labels": {"kubernetes.io/service-name": _NAME}}
    body |= {"addressType": f"IPv{ip_address(address).version}", "ports": ports}
    body["endpoints"] = [{"addresses": [address], "conditions": {"ready": True}}]
    space.request("POST", f"/apis/discovery.k8s.io/v1/namespaces/{space.name}/endpointslices", body)


def _external_name(space: Space, address: str, port: int) -> None:
    spec = {"type": "ExternalName", "externalName": address, "ports": [{"name": "https", "port": port}]}
    space.core.create_namespaced_service(space.name, {"metadata": {"name": _NAME}, "spec": spec})


def _remove_service(space: Space) -> None:
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{space.name}/endpointslices"
    for path in (f"/api/v1/namespaces/{space.name}/services/{_NAME}", f"{slices}/{_NAME}-here"):
        with suppress(ApiException):  # it was the other way
            space.request("DELETE", path)
