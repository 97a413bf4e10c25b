"""A running stack that is asked for rounds as an engine is, over gRPC or HTTP, so that it can take turns with engines.

Rounds are asked for from another thread than the one whose event loop holds the connections and the supervisor.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import machine, process_costs
from benchmarks.alternation import Turns
from benchmarks.callers import Ask, Caller, GrpcCaller, HttpCaller, Timing
from benchmarks.one_by_one import Stack, started
from benchmarks.peers import workload
from benchmarks.peers.numbers import quicker_numbers

MakeAsk = Callable[[int], Ask]
STAGES = ("admission", "vision_queue", "vision", "visual_wait", "llama_queue", "prefill", "decode")


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(workload.picture(number)).save(stream, "PNG")
    return stream.getvalue()


class StackRounds:
    """One way into a stack, with a caller for each request that may run at once. `make` makes the numbered request."""

    def __init__(self, name: str, stack: Stack, callers: Sequence[Caller], make: MakeAsk) -> None:
        self.name, self.group, self.callers = name, "stack", callers
        self._pids, self._make = list(stack.pids.values()), make
        self._loop, self._numbers = asyncio.get_running_loop(), count()

    def round(self, requests: int) -> dict[str, Any]:
        """Blocks; to be called from another thread than the loop's. Besides a round's figures, `stages`."""
        asks = [self._make(next(self._numbers)) for _ in range(requests)]
        return asyncio.run_coroutine_threadsafe(self._round(asks), self._loop).result()

    def cpu_seconds(self) -> float:
        return sum(map(process_costs.cpu_seconds, self._pids))

    async def _round(self, asks: Sequence[Ask]) -> dict[str, Any]:
        began = time.perf_counter()
        timings = await asyncio.gather(*(caller.ask(ask) for caller, ask in zip(self.callers, asks, strict=False)))
        return {
            "seconds": time.perf_counter() - began,
            "first_tokens": [timing.first_token for timing in timings],
            "tokens": sum(timing.tokens for timing in timings),
            "stages": {stage: _median(timings, stage) for stage in STAGES},
        }


def _median(timings: Sequence[Timing], stage: str) -> float:
    return statistics.median(timing.stage_seconds.get(stage, 0.0) for timing in timings)


def stages(turns: Turns, way: str, counts: Sequence[int]) -> str:
    """Where a request's time goes as the stack says: medians. The visual wait holds vision and its queue."""
    rows = []
    for stage in STAGES:
        medians = [statistics.median(turn.answer["stages"][stage] for turn in turns.of(way, n)) for n in counts]
        rows.append([stage.replace("_", " "), *(f"{1000 * seconds:.1f}" for seconds in medians)])
    return machine.table([f"ms of a request ({way})", *(f"{n} at once" for n in counts)], rows)


@asynccontextmanager
async def stack_rounds(
    checkpoint: Path, ways: Mapping[str, MakeAsk], *, precision: str, threads: int, most: int
) -> AsyncIterator[list[StackRounds]]:
    """Starts a stack and yields one StackRounds for each way in, "gRPC" or "HTTP".

    Everything computes as the peers do, with all `threads` each; what the environment sets counts more.
    """
    as_peers(precision, threads, most)
    async with started(checkpoint) as stack:
        rounds = []
        for way, make in ways.items():
            callers = [_connect(way, stack) for _ in range(most)]
            rounds.append(StackRounds(f"stack, {way}", stack, callers, make))
        yield rounds
        await asyncio.gather(*(caller.close() for one in rounds for caller in one.callers))


def as_peers(precision: str, threads: int, most: int) -> None:
    """Settings of a stack that computes as the peers do: all threads for each, so many requests at once.

    The encoders run on torch, and so in the numbers that it is quicker with; the LLaMA's weights are bfloat16 or less.
    """
    encoders = str(quicker_numbers()).removeprefix("torch.")
    defaults = {
        "ZIYA_LLAMA_DTYPE": "bfloat16",
        "ZIYA_LLAMA_QUANTISE": {"bf16": "none"}.get(precision, precision),
        "ZIYA_LLAMA_THREADS": str(threads),
        "ZIYA_LLAMA_MAX_RUNNING": str(most),
        "ZIYA_VISION_DTYPE": encoders,
        "ZIYA_VISION_THREADS": str(threads),
        "ZIYA_QFORMER_DTYPE": encoders,
        "ZIYA_QFORMER_THREADS": str(threads),
    }
    os.environ |= {name: value for name, value in defaults.items() if name not in os.environ}


def _connect(way: str, stack: Stack) -> Caller:
    if way == "HTTP":
        return HttpCaller(stack.addresses.http)
    return GrpcCaller(stack.addresses.grpc)
