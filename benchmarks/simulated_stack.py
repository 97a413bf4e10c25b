"""How far the capacity simulation is from the real stack: the same arrivals through both, on this machine.

    python -m benchmarks.simulated_stack TIMES.json [--rates 2 6] [--seconds 60]

An open loop: requests are sent at their times, whether or not earlier ones were answered. The simulation has one
replica of each stage and the times in TIMES.json, which must have been measured here (benchmarks/stage_times.py). It
gives each stage a processor of its own, and the real programs share this machine's with one another and with the
clients: the difference is the price of that simplification, among others.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.callers import Ask, GrpcCaller
from benchmarks.first_token import fresh_image
from benchmarks.one_by_one import quiet, started
from benchmarks.stage_times import prompt_tokens
from cli.capacity.arrivals import Arrival, Mix, poisson, steady
from cli.capacity.request import STAGES
from cli.capacity.simulate import Limits, simulate
from cli.capacity.stage_times import SHIPPED, StageTimes
from cli.stack import CHECKPOINT
from ziya import event_loop

QUESTION = "word " * 20
MIX = Mix(image_share=0.8, reuse=0.3, answer_tokens=32)
CHANNELS = 8
WARM_UP = 10


async def asked(callers: Sequence[GrpcCaller], arrivals: Sequence[Arrival], number: int) -> list[float]:
    """Seconds to the first token of each arrival; `number` keeps this run's pictures from those of others."""

    async def one(index: int, arrival: Arrival, began: float) -> float:
        await asyncio.sleep(began + arrival.at - time.perf_counter())
        image = fresh_image(abs(hash((number, arrival.image))) % 2**31) if arrival.image else b""
        ask = Ask(QUESTION, image, arrival.answer_tokens, ignore_eos=True)
        return (await callers[index % len(callers)].ask(ask)).first_token

    began = time.perf_counter() + 0.5
    return await asyncio.gather(*(one(index, arrival, began) for index, arrival in enumerate(arrivals)))


async def real(checkpoint: Path, traces: Sequence[Sequence[Arrival]]) -> list[list[float]]:
    """First tokens of each trace, through one stack."""
    async with started(checkpoint) as stack:
        callers = [GrpcCaller(stack.addresses.grpc) for _ in range(CHANNELS)]
        for number in range(WARM_UP):
            await callers[number % CHANNELS].ask(Ask(QUESTION, fresh_image(2**31 + number), 4, ignore_eos=True))
        found = [await asked(callers, trace, number) for number, trace in enumerate(traces)]
        await asyncio.gather(*(caller.close() for caller in callers))
        return found


def report(rates: Sequence[float], measured: Sequence[list[float]], simulated: Sequence[list[float]]) -> str:
    rows = []
    for rate, real_ones, others in zip(rates, measured, simulated, strict=True):
        for percentile in (50, 90, 99):
            here, there = (1000 * float(np.percentile(ones, percentile)) for ones in (real_ones, others))
            rows.append(
                [f"{rate:g} a second, p{percentile}", f"{here:.1f}", f"{there:.1f}", f"{there / here - 1:+.0%}"]
            )
    return machine.table(["ms to first token", "real", "simulated", "difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path, nargs="?", default=SHIPPED, metavar="TIMES.json")
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 6.0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    quiet()
    times = StageTimes.load(arguments.times)
    text = prompt_tokens(arguments.checkpoint, QUESTION)
    traces = [
        [replace(a, prompt_tokens=text) for a in poisson(steady(rate), rate, arguments.seconds, MIX, seed=1)]
        for rate in arguments.rates
    ]
    print(machine.describe(), flush=True)
    measured = event_loop.run(real(arguments.checkpoint.absolute(), traces))
    simulated = [simulate(trace, times, Limits(), dict.fromkeys(STAGES, 1)).first_tokens() for trace in traces]
    print(
        f"{', '.join(str(len(trace)) for trace in traces)} requests\n\n{report(arguments.rates, measured, simulated)}"
    )


if __name__ == "__main__":
    main()
