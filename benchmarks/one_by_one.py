"""A stack whose programs are started one after another, so that the start of each can be timed alone.

As in a cluster, where a new replica of one stage starts while the others run. A program has started when it says so
itself: gRPC health of the encoders, Triton's readiness of the model, the gateway's /readyz.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.ports import Ports
from cli.programs import Layout, plan
from cli.state import Addresses, claim
from cli.supervisor import supervise
from services.qformer.app import FULL_NAME as QFORMER
from services.vision.app import FULL_NAME as VISION

LONGEST_START = 180.0
Ready = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class Stack:
    """A running stack; `seconds` and `pids` by program."""

    addresses: Addresses
    seconds: dict[str, float]
    pids: dict[str, int]


@asynccontextmanager
async def started(checkpoint: Path) -> AsyncIterator[Stack]:
    """Yields when all programs are ready; stops them after. `checkpoint` is an absolute path."""
    with closing(Ports()) as ports, closing(claim(None)) as folder:
        layout = Layout.reserve(ports, 0, 0, lambda _: None)
        programs, addresses = plan(layout, checkpoint, folder, None)
        stack, checks = Stack(addresses, {}, {}), _checks(addresses)
        async with AsyncExitStack() as running:
            for program in programs:
                began = time.perf_counter()
                [child] = await running.enter_async_context(supervise([program], folder.logs, print))
                await _until(checks.get(program.name))
                stack.seconds[program.name] = time.perf_counter() - began
                assert child.pid is not None
                child.proven, stack.pids[program.name] = True, child.pid
            yield stack


def _checks(addresses: Addresses) -> dict[str, Ready]:
    return {
        "vision": lambda: _serving(addresses.vision, VISION),
        "qformer": lambda: _serving(addresses.qformer, QFORMER),
        "triton": lambda: _answers(f"http://{addresses.triton_http}/v2/models/ziya_llama/ready"),
        "gateway": lambda: _answers(f"{addresses.url}/readyz"),
    }


async def _until(ready: Ready | None) -> None:
    async with asyncio.timeout(LONGEST_START):
        while True:
            await asyncio.sleep(0.02)
            if ready is None or await ready():
                return


async def _serving(address: str, service: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        with suppress(grpc.aio.AioRpcError):
            request = health_pb2.HealthCheckRequest(service=service)
            reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2.0)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    return False


async def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            return (await client.get(url)).is_success
    return False


def quiet() -> None:
    """The settings that all programs of a stack get; one thread for each model, as a replica of one core."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ZIYA_LLAMA_THREADS": "1"}
