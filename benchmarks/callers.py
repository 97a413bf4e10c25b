"""One question about one image to a running stack, over HTTP or gRPC, by the callers of `ziya bench`.

They cost little, so that what is measured is the stack: cli/load/http_connection.py says how.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from cli.load import request as load
from cli.load.grpc_caller import GrpcCaller as LoadGrpcCaller
from cli.load.openai_caller import OpenAICaller
from ziya.prompt import Turn

MODEL = "ziya-visual"
OPTIONS = (load.Options(temperature=0.0), load.Options(temperature=0.0, ignore_eos=True))


@dataclass
class Timing:
    """One answer. Times in seconds from the moment it was asked for."""

    first_token: float = 0.0
    total: float = 0.0
    tokens: int = 0
    text: str = ""
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """`image` is an encoded picture, or empty for none. Greedy; with `ignore_eos` exactly `max_tokens` come."""

    question: str
    image: bytes = b""
    max_tokens: int = 16
    ignore_eos: bool = False


class Caller(Protocol):
    """Asks one question at a time."""

    async def ask(self, ask: Ask) -> Timing: ...

    async def close(self) -> None: ...


class _StackCaller:
    """Asks through two callers of `ziya bench`: whether to ignore the end token is an option of theirs."""

    def __init__(self, greedy: load.Caller, ignoring_eos: load.Caller) -> None:
        self._callers = (greedy, ignoring_eos)

    async def ask(self, ask: Ask) -> Timing:
        """Raises Failed unless the answer is complete; one without text is."""
        images = (load.Picture(ask.image, "png"),) if ask.image else ()
        request = load.Request(0, (Turn("user", ask.question, images),), ask.max_tokens)
        answer = load.Answer(request, time.perf_counter())
        try:
            await self._callers[ask.ignore_eos].ask(request, answer)
        except load.Failed as failure:
            if failure.kind != "empty":
                raise
        total = time.perf_counter() - answer.intended
        return Timing(answer.ttft or 0.0, total, answer.tokens, answer.text, answer.stages)

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close()


class HttpCaller(_StackCaller):
    """One connection to the gateway's OpenAI endpoint at host:port."""

    def __init__(self, address: str) -> None:
        base = f"http://{address}/v1"
        super().__init__(*(OpenAICaller(base, MODEL, options, time.perf_counter) for options in OPTIONS))


class GrpcCaller(_StackCaller):
    """One connection to the gateway's VisualChat at host:port."""

    def __init__(self, address: str) -> None:
        super().__init__(*(LoadGrpcCaller(address, MODEL, options, time.perf_counter) for options in OPTIONS))
