"""What it brings that keys and values of a picture are kept: the engine in this process, or the whole stack.

    python -m benchmarks.engine_reuse [--whole-stack] [--rounds 20] [--asked 48] [--at build/peers]

First: time to first token of a question about a new picture, of another user's question about the same one, and of the
chat's next turn, one request at a time, in turns. Then eight clients in a closed loop, where 0, 50 or 90 % of the
questions are about a picture of which another was asked before. Text is never the same. In the whole stack a picture
that was seen costs no ViT and no Q-Former either. Asked for: a follow-up takes at most 35 % of the first one's time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

from benchmarks import engine_arguments, machine, quiet
from benchmarks.one_by_one import started
from benchmarks.peers.workload import NEW
from benchmarks.reuse_ways import EngineWay, StackWay, Told, Way, follow_up
from benchmarks.stack_rounds import as_peers

CLIENTS = 8
SHARES = (0.0, 0.5, 0.9)
SHORT, LONG = 8, 32
tell = partial(print, flush=True)


class Album:
    """Numbers of pictures: with probability `share` one of the last few that were asked about, else a new one."""

    def __init__(self, share: float, numbers: count[int], seed: int) -> None:
        self._share, self._numbers, self._draw = share, numbers, random.Random(seed)
        self._seen: list[int] = []

    def next(self) -> int:
        if self._seen and self._draw.random() < self._share:
            return self._draw.choice(self._seen)
        self._seen = [*self._seen[1 - 2 * CLIENTS :], next(self._numbers)]
        return self._seen[-1]


async def follow_ups(way: Way, rounds: int, numbers: count[int]) -> dict[str, list[float]]:
    """Seconds to the first token by case, after two rounds that do not count."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 2):
        firsts = await follow_up(way, next(numbers), (SHORT, LONG), numbers)
        for case, seconds in firsts.items():
            if number >= 2:
                found[case].append(seconds)
    return found


async def loop(way: Way, share: float, asked: int, numbers: count[int]) -> tuple[float, float, float]:
    """(tokens a second, median seconds to the first token, reused share of the prompts) of eight clients."""
    album, left = Album(share, numbers, next(numbers)), iter(range(asked))
    answers: list[Told] = []

    async def client(index: int) -> None:
        for _ in left:
            answers.append(await way.ask(index, album.next(), next(numbers), LONG, NEW))

    began = time.perf_counter()
    await asyncio.gather(*(client(index) for index in range(CLIENTS)))
    seconds = time.perf_counter() - began
    first = statistics.median(answer.first for answer in answers)
    reused = sum(answer.cached for answer in answers) / max(1, sum(answer.prompt for answer in answers))
    return sum(answer.tokens for answer in answers) / seconds, first, reused


@asynccontextmanager
async def opened(how: argparse.Namespace) -> AsyncIterator[Way]:
    checkpoint = how.at / "models" / "checkpoint"
    if not how.whole_stack:
        engine = EngineWay.load(checkpoint, how.threads, how.native)
        yield engine
        await engine.close()
        return
    as_peers(how.precision, how.threads, 32)
    async with started(checkpoint) as stack:
        way = StackWay.connect(checkpoint, stack.addresses.http, CLIENTS)
        yield way
        await way.close()


def curve_table(curves: dict[float, list[tuple[float, float, float]]]) -> str:
    rows = []
    for share, results in curves.items():
        speed, first, reused = (statistics.median(column) for column in zip(*results, strict=True))
        rows.append([f"{share:.0%}", f"{speed:.0f}", f"{1000 * first:.0f}", f"{reused:.0%}"])
    head = ["questions about a seen picture", "tokens/s", "ms to first token, p50", "prompt tokens reused"]
    return machine.table(head, rows)


def follow_up_table(found: dict[str, list[float]]) -> str:
    first = statistics.median(found["the first question"])
    rows = []
    for case, seconds in found.items():
        middle = statistics.median(seconds)
        rows.append([case, f"{1000 * middle:.1f}", f"{middle / first:.0%}"])
    return machine.table(["ms to first token", "median", "of the first"], rows)


async def run(how: argparse.Namespace) -> None:
    numbers = count(1)
    async with opened(how) as way:
        quiet.wait(how.patience, tell)
        found = await follow_ups(way, how.rounds, numbers)
        tell(f"\n{how.rounds} rounds, one request at a time\n\n{follow_up_table(found)}\n")
        curves: dict[float, list[tuple[float, float, float]]] = defaultdict(list)
        for _ in range(max(1, how.rounds // 5)):
            for share in SHARES:
                curves[share].append(await loop(way, share, how.asked, numbers))
    tell(f"{CLIENTS} clients, {how.asked} questions a share and round\n\n{curve_table(curves)}")


def main() -> None:
    arguments = engine_arguments.parser(__doc__)
    arguments.add_argument("--whole-stack", action="store_true", help="through gateway, encoders and Triton")
    arguments.add_argument("--asked", type=int, default=48, help="questions of a closed loop")
    arguments.set_defaults(rounds=20)
    how = engine_arguments.parse(arguments)
    if not (how.at / "models").is_dir():
        tell(f"not measured: {how.at} is not there ({engine_arguments.SETUP})")
        return
    quiet.wait(how.patience, tell)
    tell(machine.describe())
    asyncio.run(run(how))


if __name__ == "__main__":
    main()
