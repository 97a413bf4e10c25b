"""What a process tells about itself: JSON lines on stderr, Prometheus metrics on a port.

Each log line carries the id of the request it belongs to, taken from a context variable that the RPC
interceptor (or a bus worker) sets, so that one request can be followed through every process; and the id
of its trace, where a caller gave one or spans are taken (ziya/tracing.py). Binary values never reach a log:
bytes are written as their length, and long texts are cut.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, start_http_server
from pydantic_core import to_json

from ziya.probes import Probes

request_id: ContextVar[str] = ContextVar("request_id", default="")
# W3C's text for the span that what happens now belongs to: version, trace id, span id, flags. "" without a trace.
traceparent: ContextVar[str] = ContextVar("traceparent", default="")

MAX_TEXT = 2000
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def new_request_id() -> str:
    """A fresh id: 32 hex digits."""
    return uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """One JSON object a record: ts (unix seconds), level, service, logger, request_id, msg, and the extra fields.

    Within a trace also trace_id.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": round(record.created, 6),
            "level": record.levelname,
            "service": self.service,
            "logger": record.name,
            "request_id": request_id.get(),
            "msg": _short(record.getMessage()),
        }
        if around := traceparent.get():
            line["trace_id"] = around.split("-")[1]
        line |= {key: _short(value) for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return to_json(line, fallback=str).decode()  # several times as fast as json
        except ValueError:  # half of a surrogate pair, which UTF-8 cannot hold
            return json.dumps(line, default=str)


def configure_logging(service: str, level: str = "INFO") -> None:
    """JSON lines on stderr for the whole process; replaces handlers set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def announce_listening(service: str, **ports: int) -> None:
    """One line of JSON on stdout that says where a process listens; supervisors and tests wait for it."""
    print(json.dumps({"event": "listening", "service": service, **ports}), flush=True)  # noqa: T201


class Metrics:
    """Makes metrics named `ziya_<service>_<name>` in one registry; there is no global one."""

    def __init__(self, service: str, registry: CollectorRegistry | None = None) -> None:
        self.service = service
        self.registry = registry if registry is not None else CollectorRegistry()

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(self._name(name), text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(self._name(name), text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return Histogram(self._name(name), text, labels, registry=self.registry, buckets=buckets)

    def _name(self, name: str) -> str:
        return f"ziya_{self.service}_{name}"


class MetricsServer:
    """Serves a registry over HTTP from a thread of its own until `close`."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, probes: Probes | None = None
) -> tuple[MetricsServer, int]:
    """Starts serving; port 0 takes a free one. The server and its port. Raises OSError when that is taken."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error}") from error
    if probes is not None:
        server.set_app(probes.before(make_wsgi_app(registry)))
    return MetricsServer(server, thread), server.server_port


def since(start: float) -> float:
    """Seconds since `start`, a reading of `time.perf_counter`."""
    return time.perf_counter() - start


def _short(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    return value
