"""Who asks: HTTP and gRPC in turn, and clients that leave before their answer is complete.

Nothing is asked twice. Only while nobody listens (the gateway is being started again) the connection is tried again,
as a load balancer or any gRPC channel does: nothing has been sent then.
"""

from __future__ import annotations

import asyncio
import random

from cli.load.grpc_caller import GrpcCaller
from cli.load.openai_caller import OpenAICaller
from cli.load.request import Answer, Caller, Clock, Failed, Options, Request

MODEL = "ziya-visual"
AGAIN_SECONDS = 0.1
NOBODY = ("failed to connect", "Connection refused", "ECONNREFUSED")


class Both:
    """Even requests go over HTTP, odd ones over gRPC."""

    def __init__(self, http: str, grpc: str, clock: Clock) -> None:
        options = Options(ignore_eos=True)
        self._callers: tuple[Caller, Caller] = (
            OpenAICaller(f"{http}/v1", MODEL, options, clock),
            GrpcCaller(grpc, MODEL, options, clock),
        )

    async def ask(self, request: Request, answer: Answer) -> None:
        while True:
            try:
                return await self._callers[request.number % 2].ask(request, answer)
            except Failed as failure:
                if answer.pieces or not _nobody_listens(failure):
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close()


class Leaving:
    """Every third request is given up by its client after some milliseconds, before or in the middle of its answer."""

    def __init__(self, inner: Caller, longest: float = 0.06) -> None:
        self._inner, self._longest = inner, longest
        self._draw = random.Random(0)

    async def ask(self, request: Request, answer: Answer) -> None:
        if request.number % 3:
            return await self._inner.ask(request, answer)
        try:
            async with asyncio.timeout(self._draw.uniform(0.0, self._longest)):
                await self._inner.ask(request, answer)
        except TimeoutError:
            raise Failed("left", "the client went away") from None

    async def close(self) -> None:
        await self._inner.close()


def _nobody_listens(failure: Failed) -> bool:
    return failure.kind == "connect" or (
        failure.kind == "grpc UNAVAILABLE" and any(word in str(failure) for word in NOBODY)
    )
