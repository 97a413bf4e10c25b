"""Whether this gateway can answer: each stage behind it is asked, side by side.

Without Triton, vision or the Q-Former there are no answers, so the gateway is not ready. Without Redis there
are, by the inline path: degraded, and ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ziya.errors import Unavailable, ZiyaError

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Report:
    """`stages` holds "ok" or a sentence for each stage; `ready` is false when a needed one is not ok."""

    ready: bool
    stages: dict[str, str]


class Readiness:
    """Asks the stages. A check returns, or raises a ZiyaError that says what is wrong."""

    def __init__(self, needed: Mapping[str, Check], optional: Mapping[str, Check], *, seconds: float) -> None:
        self._needed = needed
        self._checks = {**needed, **optional}
        self._seconds = seconds

    async def report(self) -> Report:
        """The state of every stage, after at most `seconds`."""
        states = await asyncio.gather(*(self._state(check) for check in self._checks.values()))
        stages = dict(zip(self._checks, states, strict=True))
        return Report(all(stages[name] == "ok" for name in self._needed), stages)

    async def require(self) -> None:
        """Raises Unavailable naming the needed stages that are not ok."""
        report = await self.report()
        if not report.ready:
            bad = [f"{name}: {report.stages[name]}" for name in self._needed if report.stages[name] != "ok"]
            raise Unavailable("; ".join(bad))

    async def _state(self, check: Check) -> str:
        try:
            async with asyncio.timeout(self._seconds):
                await check()
        except ZiyaError as error:
            return error.message
        except TimeoutError:
            return f"no answer within {self._seconds:g} seconds"
        return "ok"


def grpc_serving(channel: grpc.aio.Channel, service: str) -> Check:
    """A check that asks `grpc.health.v1` whether `service` is SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)

    async def check() -> None:
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"cannot be reached ({error.code().name}: {error.details()})") from None
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    return check
