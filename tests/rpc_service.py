"""A small real service over the QFormer proto, for tests of `ziya.rpc`; also a program of its own.

`Query` does what its instruction says: "raise NAME" raises that error, "wait" tells that it has begun
and waits to be released, anything else is given back as the tokens key.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import qformer_pb2, qformer_pb2_grpc
from ziya import errors, rpc, rpc_server
from ziya.telemetry import Metrics, configure_logging, request_id

FULL_NAME = "ziya.visual.v1.QFormer"
SENTENCE = "这不是图片: 100 % wrong, really"


class Obedient(qformer_pb2_grpc.QFormerServicer):
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.request_ids: list[str] = []
        self.deadlines: list[float] = []

    async def Query(self, request: qformer_pb2.QueryRequest, context: Any) -> qformer_pb2.QueryReply:
        self.request_ids.append(request_id.get())
        self.deadlines.append(rpc.deadline_of(context))
        word, _, name = request.instruction.partition(" ")
        if word in ("raise", "long"):
            raise getattr(errors, name)(SENTENCE if word == "raise" else "长" * 5000)
        if word == "wait":
            await self._wait()
        if word == "break":
            raise ZeroDivisionError("secret detail")
        return qformer_pb2.QueryReply(tokens_key=request.instruction)

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@dataclass
class Running:
    service: Obedient
    server: rpc_server.GrpcServer
    target: str
    metrics: Metrics
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def channel(self, max_message_bytes: int = 32 << 20) -> grpc.aio.Channel:
        self.channels.append(rpc.connect(self.target, max_message_bytes=max_message_bytes))
        return self.channels[-1]

    def query(self) -> Any:
        return qformer_pb2_grpc.QFormerStub(self.channel()).Query


@asynccontextmanager
async def running(
    options: rpc_server.ServerOptions | None = None, ready: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Running]:
    service, metrics = Obedient(), Metrics("test")
    server = _server(service, options or rpc_server.ServerOptions(), metrics, ready)
    port = await server.start()
    run = Running(service, server, f"127.0.0.1:{port}", metrics)
    try:
        yield run
    finally:
        for channel in run.channels:
            await channel.close(None)
        await server.stop()


def _server(
    service: Obedient, options: rpc_server.ServerOptions, metrics: Metrics, ready: Any
) -> rpc_server.GrpcServer:
    return rpc_server.GrpcServer(
        "test", _registrar(service), [FULL_NAME], options=options, metrics=metrics, ready=ready
    )


def _registrar(service: Obedient) -> Callable[[grpc.aio.Server], None]:
    return lambda server: qformer_pb2_grpc.add_QFormerServicer_to_server(service, server)


def ask(instruction: str) -> qformer_pb2.QueryRequest:
    return qformer_pb2.QueryRequest(instruction=instruction)


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(reply.status)


async def until_refused(query: Any) -> None:
    """Calls until a call fails: the other end may need a moment to have seen what was sent before."""
    async with asyncio.timeout(20):
        while True:
            await rpc.call(query, ask("x"))


async def main() -> None:
    """Serves until SIGTERM. A line on stdin releases the waiting calls; stdout tells when one waits."""
    configure_logging("test")
    service = Obedient()

    async def release() -> None:
        await service.begun.wait()
        print("begun", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.readline)
        service.released.set()

    releasing = asyncio.create_task(release())
    await rpc_server.serve(
        "test", _registrar(service), [FULL_NAME], options=rpc_server.ServerOptions(), metrics=Metrics("test")
    )
    releasing.cancel()


if __name__ == "__main__":
    asyncio.run(main())
