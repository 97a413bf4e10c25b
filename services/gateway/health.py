"""Whether this gateway can answer: each stage behind it is asked, side by side.

Without Triton, vision or the Q-Former there are no answers, so the gateway is not ready. Without Redis there
are, by the inline path: degraded, and ready. Only a gateway that starts waits for it a while.
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
    """`stages` holds "ok" or a sentence for each stage."""

    ready: bool
    stages: dict[str, str]


class Readiness:
    """Asks the stages. A check returns, or raises a ZiyaError that says what is wrong.

    The gateway is ready when all that are `needed` are ok and `arrived` is true, whatever the `optional` ones are.
    """

    def __init__(
        self,
        needed: Mapping[str, Check],
        optional: Mapping[str, Check],
        *,
        seconds: float,
        arrived: Callable[[], bool],
    ) -> None:
        self._needed, self._arrived = needed, arrived
        self._checks = {**needed, **optional}
        self._seconds = seconds

    async def report(self) -> Report:
        """The state of every stage, after at most `seconds`."""
        states = await asyncio.gather(*(self._state(check) for check in self._checks.values()))
        stages = dict(zip(self._checks, states, strict=True))
        return Report(self._arrived() and all(stages[name] == "ok" for name in self._needed), stages)

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
