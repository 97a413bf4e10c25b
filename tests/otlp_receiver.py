"""A collector for tests: a real HTTP server that takes OpenTelemetry's spans as a collector does, and keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.local_http import Quiet, serving

KINDS = {number: name.removeprefix("SPAN_KIND_") for name, number in trace_pb2.Span.SpanKind.items()}


@dataclass(frozen=True)
class Span:
    """One span as it came; times are in unix seconds, ids in hex, `parent` "" for none."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    failed: bool
    attributes: dict[str, str]
    links: tuple[tuple[str, str], ...]


@dataclass
class Receiver:
    """`spans` in the order of arrival; `bodies` are what was sent, as bytes."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]

    def until(self, trace: str, enough: Callable[[list[Span]], bool], seconds: float = 30.0) -> list[Span]:
        """The spans of a trace as soon as they are enough. Raises AssertionError with those that came."""
        until = time.monotonic() + seconds
        while not enough(found := self.of(trace)):
            assert time.monotonic() < until, sorted((span.service, span.name) for span in found)
            time.sleep(0.05)
        return found


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on a free port."""

    receiver = Receiver()

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            well = (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
            if well:
                receiver.bodies.append(body)
                receiver.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.answer(
                200 if well else 404, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf"
            )

    with serving(Handler) as receiver.port:
        yield receiver


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            yield from (_span(about["service.name"], span) for span in scope.spans)


def _span(service: str, span: trace_pb2.Span) -> Span:
    return Span(
        service=service,
        name=span.name,
        kind=KINDS[span.kind],
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes={one.key: _value(one.value) for one in span.attributes},
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _value(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    return str(getattr(value, kind))
