"""A gRPC server as every service needs it: health, reflection, admission, drain, and TLS where it is asked for.

A service hands in its servicer and the names of its services; all else is here. Their health is
NOT_SERVING until `ready` has returned, and again from the first SIGTERM on: then new calls are refused,
those in flight end, and only then the port closes. The health of the process as a whole (no name) is
SERVING while the port is open: who is slow to become ready lives all the same. Health and reflection
answer throughout.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from ziya.heap import keep_what_is_loaded
from ziya.interceptors import CallGuard
from ziya.probes import Probes
from ziya.rpc import KEEPALIVE_MS
from ziya.settings import ProcessSettings
from ziya.telemetry import Metrics, announce_listening, serve_metrics
from ziya.tls import TlsFolder

# After the last handler returned: time for its status to leave, and for health watchers to be told.
FLUSH_SECONDS = 0.5
# From a connection's beginning to its first frame of HTTP/2, with TLS before it.
HANDSHAKE_MS = 20_000
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)


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
    max_connection_age: float = 30.0
    # Encrypted, and for callers with a certificate alone.
    tls: TlsFolder | None = None

    @classmethod
    def of(
        cls, settings: ProcessSettings, *, port: int, metrics_port: int, tls: TlsFolder | None = None
    ) -> ServerOptions:
        return cls(
            host=settings.host,
            port=port,
            metrics_port=metrics_port,
            max_message_bytes=settings.max_message_bytes,
            max_concurrent=settings.max_concurrent,
            drain_seconds=settings.drain_seconds,
            tls=tls,
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
        self._names = full_names
        self._serving = False
        self._guard = CallGuard(service, metrics, options.max_concurrent)
        self._health = health.HealthServicer()
        self._server = grpc.aio.server(interceptors=[self._guard], options=_server_options(options))
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        listed = [*full_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(listed, self._server)

    async def start(self) -> int:
        """`open` and `become_ready`; the port."""
        port = await self.open()
        try:
            await self.become_ready()
        except BaseException:
            await self._server.stop(None)
            raise
        return port

    async def open(self) -> int:
        """Opens the port, behind which nothing is ready yet; the port. Raises OSError when it is taken."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        host = self._options.host
        address = f"[{host}]:{self._options.port}" if ":" in host else f"{host}:{self._options.port}"
        try:
            port = self._bind(address)
        except RuntimeError as error:
            raise OSError(f"{self._service} cannot listen on {address}: is it in use?") from error
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return port

    async def become_ready(self) -> None:
        """Waits until ready, and tells health."""
        if self._ready is not None:
            await self._ready()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._serving = True

    def is_ready(self) -> bool:
        """What health says, for those who cannot ask it. From any thread."""
        return self._serving

    async def drain(self) -> None:
        """NOT_SERVING, no new calls, and up to `drain_seconds` for those in flight."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        if not await self._guard.drain(self._options.drain_seconds):
            log.warning("calls were still in flight when the drain time ended")

    async def stop(self) -> None:
        """Closes the port and aborts what is left."""
        await self._server.stop(FLUSH_SECONDS)

    def _bind(self, address: str) -> int:
        if self._options.tls is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._options.tls.server_credentials())

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
    probes = Probes(server.is_ready)
    exporter, exporter_port = serve_metrics(metrics.registry, options.host, options.metrics_port, probes)
    stopping = asyncio.create_task(stop_signal())
    try:
        port = await _unless(stopping, server.start())
        if port is not None:
            keep_what_is_loaded()
            announce_listening(service, grpc=port, metrics=exporter_port)
            await stopping
            await server.drain()
    finally:
        stopping.cancel()
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


async def _unless(stopping: asyncio.Task[None], work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """What the work gives; None when it is given up because the process is to stop first."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return None


def _server_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.so_reuseport", 0),
        # Of one connection: many more than are let in, so that they are told so. gRPC counts those that ended until
        # all of them is freed, and under overload resets what is above it without a word (REFUSED_STREAM).
        ("grpc.max_concurrent_streams", 8 * options.max_concurrent + 16),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_age_ms", int(options.max_connection_age * 1000)),
        # Clients may ping a little more often than they do (else they are told "too many pings").
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
