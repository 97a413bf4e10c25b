"""An adapter for metrics, as HorizontalPodAutoscalers ask one: custom.metrics.k8s.io and external.metrics.k8s.io.

A real HTTPS server. What it says is for the test to set: a total a metric, which all pods that are asked for share
alike, or which an external metric is. A metric that was not set is not found.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from tests.kube import certificate
from tests.kube.errors import ApiError
from tests.kube.objects import Object, timestamp
from tests.kube.selectors import label_test

CUSTOM, EXTERNAL = ("custom.metrics.k8s.io", "v1beta2"), ("external.metrics.k8s.io", "v1beta1")
# By namespace and label selector, the names of the pods that there are.
Pods = Callable[[str, str], list[str]]


class MetricsApi:
    """`with` serves on a port of its own, on all addresses of this host."""

    def __init__(self, folder: Path, pods: Pods) -> None:
        self._pods, self._lock = pods, threading.Lock()
        self._totals: dict[str, float] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.ca_file, context = certificate.write(folder)
        self._server = _Server(("", 0), context, self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> MetricsApi:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def set(self, metric: str, total: float, **labels: str) -> None:
        """Of all pods together. With labels it is an external metric, which these labels find."""
        with self._lock:
            self._totals[metric], self._labels[metric] = total, labels

    def _answer(self, target: str, accept: str) -> Object:
        """Raises ApiError."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        steps = [unquote(step) for step in parts.path.split("/") if step]
        with self._lock:
            self.asked.append(target)
        if steps == ["apis"]:
            if "as=" in accept:  # all groups in one document; whoever asks for that knows the older way, too
                raise ApiError(406, "NotAcceptable", "only application/json")
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(*one) for one in (CUSTOM, EXTERNAL)]}
        for group, version in (CUSTOM, EXTERNAL):
            if steps == ["apis", group]:
                return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, version)}
            if steps[:3] == ["apis", group, version]:
                return self._of_group(group, version, steps[3:], query)
        raise _absent(parts.path)

    def _of_group(self, group: str, version: str, steps: list[str], query: dict[str, str]) -> Object:
        here = f"{group}/{version}"
        if not steps:
            return self._resources(group, here)
        is_custom = group == CUSTOM[0]
        if (steps[0], len(steps)) != ("namespaces", 5 if is_custom else 3):
            raise _absent("/".join(steps))
        with self._lock:
            total, labels = self._totals.get(steps[-1]), self._labels.get(steps[-1], {})
        if total is None or bool(labels) == is_custom:
            raise _absent(steps[-1])
        if is_custom:
            if steps[2:4] != ["pods", "*"]:
                raise _absent("/".join(steps))
            items = self._of_pods(steps[1], steps[4], total, query.get("labelSelector", ""))
            return {"kind": "MetricValueList", "apiVersion": here, "metadata": {}, "items": items}
        items = _external(steps[2], total, labels) if label_test(query.get("labelSelector", ""))(labels) else []
        return {"kind": "ExternalMetricValueList", "apiVersion": here, "metadata": {}, "items": items}

    def _resources(self, group: str, here: str) -> Object:
        with self._lock:
            metrics = [name for name, labels in self._labels.items() if bool(labels) != (group == CUSTOM[0])]
        kind, prefix = ("MetricValueList", "pods/") if group == CUSTOM[0] else ("ExternalMetricValueList", "")
        told = {"singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
        listed = [{"name": f"{prefix}{name}", **told} for name in metrics]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": here, "resources": listed}

    def _of_pods(self, namespace: str, metric: str, total: float, selector: str) -> list[Object]:
        pods = self._pods(namespace, selector)
        now = timestamp(datetime.now(UTC))
        return [
            {
                "describedObject": {"kind": "Pod", "namespace": namespace, "name": pod, "apiVersion": "/v1"},
                "metric": {"name": metric, "selector": None},
                "timestamp": now,
                "value": quantity(total / len(pods)),
            }
            for pod in pods
        ]


def quantity(number: float) -> str:
    """As Kubernetes writes it, in thousandths."""
    return f"{round(number * 1000)}m"


def _external(metric: str, total: float, labels: dict[str, str]) -> list[Object]:
    now = timestamp(datetime.now(UTC))
    return [{"metricName": metric, "metricLabels": labels, "timestamp": now, "value": quantity(total)}]


def _group(name: str, version: str) -> Object:
    told = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [told], "preferredVersion": told}


def _absent(what: str) -> ApiError:
    return ApiError(404, "NotFound", f"the server could not find {what}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, place: tuple[str, int], context: ssl.SSLContext, answer: Callable[[str, str], Object]) -> None:
        super().__init__(place, _Handler)
        self.context, self.answer = context, answer

    def handle_error(self, *_: object) -> None:
        """Whoever only looks whether the port is open, or hangs up, is no fault; anything else is one to see."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*_)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """In the connection's own thread, so that a client that never speaks keeps nobody waiting."""
        self.request.settimeout(30)
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()

    def do_GET(self) -> None:
        try:
            code, document = 200, self.server.answer(self.path, self.headers.get("Accept", ""))
        except ApiError as error:
            code, document = error.code, error.body()
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests have their own output."""
