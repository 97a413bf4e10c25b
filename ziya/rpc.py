"""gRPC for every process: serve with health, reflection and drain; connect with sane options; call with our errors.

A service hands in its servicer and the names of its services; all else is here. Its health is
NOT_SERVING until `ready` has returned, and again from the first SIGTERM on: then new calls are refused,
those in flight end, and only then the port closes. Health and reflection answer throughout.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from ziya.errors import DeadlineExceeded, InvalidRequest, Overloaded, ZiyaError, from_status
from ziya.interceptors import REQUEST_ID, RETRY_AFTER, CallGuard
from ziya.settings import ProcessSettings
from ziya.telemetry import Metrics, announce_listening, request_id, serve_metrics

log = logging.getLogger(__name__)

KEEPALIVE_MS = 30_000
# After the last handler returned: time for its status to leave, and for health watchers to be told.
FLUSH_SECONDS = 0.5
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Throttled, so that an outage is not multiplied by everyone's retries.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{}], "retryPolicy": _RETRY}],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}


@dataclass(frozen=True)
class ServerOptions:
    """Where and how to listen. Times are in seconds, sizes in bytes; port 0 means any free port."""

    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int = 0
    max_message_bytes: int = 32 << 20
    max_concurrent: int = 256
    drain_seconds: float = 10.0
    # A connection takes no new calls from this age on, so that clients find replicas that came later.
    max_connection_age: float = 300.0

    @classmethod
    def of(cls, settings: ProcessSettings, *, port: int, metrics_port: int) -> ServerOptions:
        return cls(
            host=settings.host,
            port=port,
            metrics_port=metrics_port,
            max_message_bytes=settings.max_message_bytes,
            max_concurrent=settings.max_concurrent,
            drain_seconds=settings.drain_seconds,
        )


class GrpcServer:
    """One listening server; `register` adds the servicers, `full_names` are their protobuf names.

    `ready` runs after the port is open and before health says SERVING; what it raises stops the start.
    """

    def __init__(
        self,
        service: str,
        register: Callable[[grpc.aio.Server], None],
        full_names: Sequence[str],
        *,
        options: ServerOptions,
        metrics: Metrics,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._service, self._options, self._ready = service, options, ready
        self._names = ["", *full_names]
        self._guard = CallGuard(service, metrics, options.max_concurrent)
        self._health = health.HealthServicer()
        self._server = grpc.aio.server(interceptors=[self._guard], options=_server_options(options))
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        listed = [*full_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(listed, self._server)

    async def start(self) -> int:
        """Opens the port, waits until ready, and tells health; the port. Raises OSError when it is taken."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        host = self._options.host
        address = f"[{host}]:{self._options.port}" if ":" in host else f"{host}:{self._options.port}"
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"{self._service} cannot listen on {address}: is it in use?") from error
        await self._server.start()
        try:
            if self._ready is not None:
                await self._ready()
        except BaseException:
            await self._server.stop(None)
            raise
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self) -> None:
        """NOT_SERVING, no new calls, and up to `drain_seconds` for those in flight."""
        await self._health.enter_graceful_shutdown()
        if not await self._guard.drain(self._options.drain_seconds):
            log.warning("calls were still in flight when the drain time ended")

    async def stop(self) -> None:
        """Closes the port and aborts what is left."""
        await self._server.stop(FLUSH_SECONDS)

    async def _set_health(self, status: int) -> None:
        for name in self._names:
            await self._health.set(name, status)


async def serve(
    service: str,
    register: Callable[[grpc.aio.Server], None],
    full_names: Sequence[str],
    *,
    options: ServerOptions,
    metrics: Metrics,
    ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains: what a service's `main` ends with."""
    server = GrpcServer(service, register, full_names, options=options, metrics=metrics, ready=ready)
    exporter, exporter_port = serve_metrics(metrics.registry, options.host, options.metrics_port)
    try:
        port = await server.start()
        announce_listening(service, grpc=port, metrics=exporter_port)
        await stop_signal()
        await server.drain()
    finally:
        await server.stop()
        exporter.close()


async def stop_signal() -> None:
    """Returns at the first SIGTERM or SIGINT; a second one ends the process as the system does."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    log.info("asked to stop")


def connect(target: str, *, max_message_bytes: int = 32 << 20, keepalive: bool = True) -> grpc.aio.Channel:
    """A channel to `host:port` (all its addresses in turn), or to a target that names its own scheme.

    `keepalive` is for our own servers: others (Triton) take its pings for abuse and close the connection.
    """
    where = target if "://" in target or target.startswith("unix:") else f"dns:///{target}"
    return grpc.aio.insecure_channel(where, options=_channel_options(max_message_bytes, keepalive))


async def call(method: Any, request: Any, *, deadline: float | None = None) -> Any:
    """The reply of a unary method. `deadline` is in unix seconds; the request id of the context goes along.

    Raises errors of our tree only, of the very class that the service raised.
    """
    try:
        return await method(request, timeout=_timeout(deadline), metadata=_metadata())
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def stream(method: Any, request: Any, *, deadline: float | None = None) -> AsyncIterator[Any]:
    """The replies of a server-streaming method, under the terms of `call`. Leaving the loop cancels the call."""
    replies = method(request, timeout=_timeout(deadline), metadata=_metadata())
    try:
        async for reply in replies:
            yield reply
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    finally:
        replies.cancel()


def error_of(error: grpc.aio.AioRpcError) -> ZiyaError:
    """What a peer, or gRPC itself, meant by a failed call."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
        return InvalidRequest(f"the request or its answer is larger than the message limit ({details})")
    ours = from_status(code, details)
    trailing: Any = error.trailing_metadata() or ()  # an iterable of pairs; the stubs do not know
    if isinstance(ours, Overloaded):
        ours.retry_after = next((float(v) for k, v in trailing if k == RETRY_AFTER), ours.retry_after)
    return ours


def deadline_of(context: Any, default_seconds: float = 60.0) -> float:
    """When a call must have ended, in unix seconds; `default_seconds` from now when its caller set no deadline."""
    left = context.time_remaining()
    return time.time() + (default_seconds if left is None else left)


def _timeout(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.time()
    if left <= 0:
        raise DeadlineExceeded("no time was left for the call")
    return left


def _metadata() -> tuple[tuple[str, str], ...]:
    own = request_id.get()
    return ((REQUEST_ID, own),) if own else ()


def _server_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_age_ms", int(options.max_connection_age * 1000)),
        # Clients may ping a little more often than they do (else they are told "too many pings").
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _channel_options(max_message_bytes: int, keepalive: bool) -> list[tuple[str, str | int]]:
    pings = [("grpc.keepalive_time_ms", KEEPALIVE_MS), ("grpc.keepalive_permit_without_calls", 1)]
    return [
        *(pings if keepalive else ()),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # A service that comes back is found within this time.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Stages talk to one another, never through a web proxy of the environment.
        ("grpc.enable_http_proxy", 0),
    ]
