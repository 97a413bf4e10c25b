"""What happens around every call of every service: request id, trace, admission, errors to status, metrics, a log line.

Servicers raise errors of `ziya/errors.py` and know no status codes; here, and only here, an error
becomes a status, with `Name: sentence` as its message, so that the caller gets the exact class back.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from ziya import tracing
from ziya.errors import (
    BadField,
    BusUnavailable,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
    Unimplemented,
    ZiyaError,
    status_of,
    to_line,
)
from ziya.telemetry import Metrics, new_request_id, request_id, since, traceparent

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
RETRY_AFTER = "retry-after"
STATUS_DETAILS = "grpc-status-details-bin"
# Characters of a status message: it travels in an HTTP/2 header of at most 8 KiB, where a Chinese one takes 9 bytes.
MAX_DETAILS = 512
log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class CallGuard(grpc.aio.ServerInterceptor):
    """Guards all calls but those of gRPC's own services (health, reflection), which always go through."""

    def __init__(self, service: str, metrics: Metrics, max_concurrent: int) -> None:
        self._service, self._max_concurrent = service, max_concurrent
        self._calls = metrics.counter("rpc", "Calls ended, by method and status", ["method", "code"])
        self._seconds = metrics.histogram("rpc_seconds", "Seconds from arrival to end of a call", ["method"])
        self._gauge = metrics.gauge("rpc_in_flight", "Calls in flight")
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}  # by path, of methods that there are

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls; whether those in flight ended within `seconds`."""
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = handler_call_details.method
        if path not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None or path.startswith("/grpc."):
                return handler
            self._guarded[path] = self._guard(handler, path.rpartition(".")[2])
        return self._guarded[path]

    def _guard(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        # Without a deserializer: what gRPC cannot read it calls an error of its own, with a traceback in the log.
        coders = {"response_serializer": handler.response_serializer}
        read = _reader(handler.request_deserializer, method)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method, read), **coders)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method, read), **coders)

    def _unary(self, inner: Any, method: str, read: Callable[[bytes], Any]) -> Any:
        async def call(data: bytes, context: Context) -> Any:
            async with self._around(method, context):
                return await inner(read(data), context)

        return call

    def _stream(self, inner: Any, method: str, read: Callable[[bytes], Any]) -> Any:
        async def call(data: bytes, context: Context) -> AsyncIterator[Any]:
            async with self._around(method, context):
                async for reply in inner(read(data), context):
                    yield reply

        return call

    @asynccontextmanager
    async def _around(self, method: str, context: Context) -> AsyncIterator[None]:
        started, code, failure = time.perf_counter(), grpc.StatusCode.OK, None
        metadata = dict(context.invocation_metadata() or ())
        own = _request_id(metadata.get(REQUEST_ID))
        request_id.set(own)  # each call has a task, and so a context, of its own
        traceparent.set(tracing.accept(metadata.get(TRACEPARENT)))
        context.set_trailing_metadata(((REQUEST_ID, own),))
        self._count(+1)
        with tracing.span(method, {"rpc.system": "grpc", "ziya.request_id": own}, kind=tracing.Kind.SERVER) as span:
            try:
                self._admit()
                yield
            except ZiyaError as error:
                failure = error
            except NotImplementedError:  # of the generated servicer, for a method that ours does not have
                failure = Unimplemented(f"{method} is not implemented by {self._service}")
            except (asyncio.CancelledError, GeneratorExit):
                left = context.time_remaining()
                code = grpc.StatusCode.CANCELLED if left is None or left > 0 else grpc.StatusCode.DEADLINE_EXCEEDED
                raise
            except Exception:
                log.exception("a call failed with an error that is a defect", extra={"method": method})
                failure = Internal(f"a defect of the service; its log has request {own}")
            finally:
                # Before the status leaves: who has the answer finds it counted.
                self._count(-1)
                self._ended(method, status_of(failure)[0] if failure else code, since(started), failure)
            if failure is not None:
                span.fail(failure)
        if failure is not None:
            await _abort(context, failure, own)

    def _admit(self) -> None:
        if self._draining:
            raise Unavailable(f"{self._service} is stopping")
        if self._in_flight > self._max_concurrent:
            raise Overloaded(f"{self._service} has {self._max_concurrent} calls in flight already")

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._gauge.set(self._in_flight)
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def _ended(self, method: str, code: grpc.StatusCode, seconds: float, failure: ZiyaError | None) -> None:
        self._calls.labels(method, code.name).inc()
        self._seconds.labels(method).observe(seconds)
        told: dict[str, object] = {"method": method, "code": code.name, "seconds": round(seconds, 6)}
        if failure is not None:
            told["error"] = to_line(failure) if may_be_logged(failure) else type(failure).__name__
        log.info("call ended", extra=told)


def may_be_logged(error: ZiyaError) -> bool:
    """Whether an error's sentence is all our own; that of a plain InvalidRequest may quote what a client sent."""
    return type(error) not in (InvalidRequest, BadField)


async def _abort(context: Context, error: ZiyaError, own: str) -> None:
    trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID, own)]
    if isinstance(error, Overloaded):
        trailing.append((RETRY_AFTER, f"{error.retry_after:g}"))
        trailing.append((STATUS_DETAILS, _retry_info(error)))
    if isinstance(error, BusUnavailable):
        # The next try would meet the same Redis: the caller is to take the direct path at once.
        trailing.append(("grpc-retry-pushback-ms", "-1"))
    await context.abort(status_of(error)[0], to_line(error)[:MAX_DETAILS], tuple(trailing))


def _retry_info(error: Overloaded) -> bytes:
    """When to ask again in google.rpc's terms, which clients of every language can read."""
    status = status_pb2.Status(code=status_of(error)[0].value[0], message=to_line(error)[:MAX_DETAILS])
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(error.retry_after * 1000))
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


def _reader(parse: Any, method: str) -> Callable[[bytes], Any]:
    """As the service's own deserializer, but raises InvalidRequest."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            raise InvalidRequest(f"the message is not protobuf of {method}'s request") from None

    return read


def _request_id(given: str | bytes | None) -> str:
    """The caller's id when it is one that may stand in a log, else a new one."""
    if isinstance(given, str) and re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII):
        return given
    return new_request_id()
