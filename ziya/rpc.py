"""gRPC as a caller sees it: connect with sane options, call with a deadline, and get our errors back.

The other end is ziya/rpc_server.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from ziya.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable, ZiyaError, from_status
from ziya.interceptors import REQUEST_ID, RETRY_AFTER, TRACEPARENT
from ziya.telemetry import request_id, traceparent
from ziya.tls import TlsFolder

KEEPALIVE_MS = 30_000
DNS_MS = 5_000
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    # A server that shuts down says CANCELLED to the calls that it has received but not begun.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
# Throttled, so that an outage is not multiplied by everyone's retries.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{}], "retryPolicy": _RETRY}],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}


def connect(
    target: str,
    *,
    max_message_bytes: int = 32 << 20,
    keepalive: bool = True,
    tls: TlsFolder | None = None,
    watch: str = "",
) -> grpc.aio.Channel:
    """A channel to `host:port` (all its addresses in turn), or to a target that names its own scheme.

    `keepalive` is for our own servers: others (Triton) take its pings for abuse and close the connection. With `tls`
    both sides show a certificate, and the server's must be for the name in the target. With `watch`, the name of a
    service, calls go only to addresses whose health says that it serves: one that drains is left at once, not when its
    connection ends.
    """
    where = target if "://" in target or target.startswith("unix:") else f"dns:///{target}"
    options = _channel_options(max_message_bytes, keepalive, watch)
    return grpc.aio.insecure_channel(where, options=options) if tls is None else tls.channel(where, options)


async def call(method: Any, request: Any, *, deadline: float | None = None) -> Any:
    """The reply of a unary method. `deadline` is in unix seconds; request id and trace of the context go along.

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
    if code is grpc.StatusCode.CANCELLED and not details.startswith("Cancelled: "):
        return Unavailable("the service was shutting down")
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
    known = ((REQUEST_ID, request_id.get()), (TRACEPARENT, traceparent.get()))
    return tuple(pair for pair in known if pair[1])


def _channel_options(max_message_bytes: int, keepalive: bool, watch: str) -> list[tuple[str, str | int]]:
    pings = [("grpc.keepalive_time_ms", KEEPALIVE_MS), ("grpc.keepalive_permit_without_calls", 1)]
    health = {"healthCheckConfig": {"serviceName": watch}} if watch else {}
    return [
        *(pings if keepalive else ()),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.service_config", json.dumps({**SERVICE_CONFIG, **health})),
        # A service that comes back is found within this time.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # When a connection has ended the name is asked for again, but not more often; by itself gRPC waits 30 seconds.
        ("grpc.dns_min_time_between_resolutions_ms", DNS_MS),
        # Stages talk to one another, never through a web proxy of the environment.
        ("grpc.enable_http_proxy", 0),
    ]
