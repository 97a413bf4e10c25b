"""The end of tracing that knows OpenTelemetry: spans out of texts, and their way to a collector by OTLP over HTTP.

Imported by nobody but a process that was told an endpoint (ziya/tracing.py). Spans go in batches from a thread of
their own; a collector that is away costs their loss and a line in the log, never a request its time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from threading import Thread
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from ziya.telemetry import traceparent
from ziya.tracing import Attributes, Kind, Span

EXPORT_SECONDS = 2.0
INTERVAL_SECONDS = 1.0


class Exporting:
    """A process's spans. `endpoint` is a collector's base URL; `ratio` of the traces that begin here are taken."""

    def __init__(self, service: str, endpoint: str, ratio: float) -> None:
        resource = Resource.create(
            {
                "service.name": f"ziya-{service}",
                "service.namespace": "ziya-visual",
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=INTERVAL_SECONDS * 1000))
        self._tracer = self._provider.get_tracer("ziya")

    def begin(self, name: str, kind: Kind, attributes: Attributes, since: float | None) -> Span:
        start = None if since is None else _unix_nanoseconds(since)
        return _Taken(self._start(name, kind, traceparent.get(), attributes, start=start))

    def record(
        self, name: str, times: tuple[float, float], parent: str, attributes: Attributes, links: Sequence[str]
    ) -> str:
        start, end = map(_unix_nanoseconds, times)
        span = self._start(name, Kind.INTERNAL, parent, attributes, links=links, start=start)
        span.end(max(start, end))
        return _text(span.get_span_context())

    def close(self) -> None:
        # In a thread, since a collector that does not answer would hold up the end of the process, batch by batch.
        closing = Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(EXPORT_SECONDS)

    def _start(
        self,
        name: str,
        kind: Kind,
        parent: str,
        attributes: Attributes,
        *,
        links: Sequence[str] = (),
        start: int | None = None,
    ) -> trace.Span:
        around = Context()
        if parent:
            remote = kind in (Kind.SERVER, Kind.CONSUMER)
            around = trace.set_span_in_context(NonRecordingSpan(_context(parent, remote=remote)), around)
        linked = [Link(_context(each, remote=False)) for each in links if each]
        return self._tracer.start_span(name, around, SpanKind[kind], attributes, linked, start)


class _Taken(Span):
    """A span that goes to the collector, if its trace is one that is taken."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._own = _text(span.get_span_context())
        self._around = ""

    @property
    def traceparent(self) -> str:
        return self._own

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error: BaseException) -> None:
        self._span.set_attribute("error.type", type(error).__name__)
        if not isinstance(error, asyncio.CancelledError | GeneratorExit):  # somebody left, which is no fault
            self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()

    def __enter__(self) -> Self:
        self._around = traceparent.get()
        traceparent.set(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Set and not reset: a generator may be closed in another context than it began in.
        traceparent.set(self._around)
        if error is not None:
            self.fail(error)
        self.end()


def _unix_nanoseconds(reading: float) -> int:
    return time.time_ns() - int((time.perf_counter() - reading) * 1e9)


def _context(text: str, *, remote: bool) -> SpanContext:
    _, trace_id, span_id, flags = text.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(int(flags, 16)))


def _text(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
