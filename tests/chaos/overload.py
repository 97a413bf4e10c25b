"""What a stack still does when twice as many ask as it can serve.

    python -m tests.chaos.overload

The rate rises step by step until an answer in twenty is refused or late; the best goodput (answers within the deadline,
a second) is what the stack sustains. Then twice that rate is asked for. Goodput counts what is answered after the first
seconds and before the asking ends: what a short step leaves over to be answered later would make it look faster than a
long one. Load and stack share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass

from benchmarks.machine import describe
from cli.load.arrivals import send_times
from cli.load.experiment import Stopwatch
from cli.load.request import Answer
from cli.load.run import Bounds, Run
from tests.chaos.act import workload
from tests.chaos.callers import Both
from tests.chaos.scene import Scene, scene
from tests.chaos.table import markdown
from tests.chaos.verdict import outcome

DEADLINE_SECONDS = 5.0
ENVIRONMENT = {"ZIYA_REQUEST_TIMEOUT": f"{DEADLINE_SECONDS:g}"}
FIRST_RATE, GROWTH, HIGHEST_RATE = 10.0, 1.4, 400.0
SUSTAINED = 0.95
# Until then the places fill.
RAMP_SECONDS = 3.0


@dataclass(frozen=True)
class Step:
    """Requests at one rate: a row.

    `goodput` is answers in time a second while the load was steady, `p99` the 99th percentile of seconds of those that
    were let in, `cores` what the load itself took of the machine.
    """

    rate: float
    requests: int
    good: int
    refused: int
    failed: int
    goodput: float
    p99: float
    cores: float

    def row(self) -> list[str]:
        counts = [str(count) for count in (self.requests, self.good, self.refused, self.failed)]
        return [f"{self.rate:.0f}", *counts, f"{self.goodput:.1f}", f"{self.p99:.2f}", f"{self.cores:.2f}"]


HEAD = ("requests/s asked", "requests", "answered in time", "refused", "failed", "goodput /s", "p99 of admitted s")
HEAD += ("cores of the load",)


async def step(there: Scene, rate: float, seconds: float, seed: int) -> Step:
    """One rate for so long."""
    clock = Stopwatch()
    both = Both(there.stack.url, there.stack.addresses["grpc"], clock)
    asked = workload(round(rate * seconds), seed)
    run = Run(both, asked, Bounds(None, seconds, DEADLINE_SECONDS + 5.0), clock)
    clock.restart()
    used = time.process_time()
    try:
        await run.open(send_times(rate, "poisson", 1.0, seed))
    finally:
        await both.close()
    return _judge(rate, run.answers, seconds, (time.process_time() - used) / clock())


def _judge(rate: float, answers: list[Answer], seconds: float, cores: float) -> Step:
    words = [outcome(answer, may_break_off=False) for answer in answers]
    # From when it was sent: what the client itself was late by is no doing of the server.
    times = [(a.ended or 0.0) - (a.sent or 0.0) for a in answers]
    good = [
        answer
        for answer, word, took in zip(answers, words, times, strict=True)
        if word == "answered" and took <= DEADLINE_SECONDS
    ]
    steady = sum(RAMP_SECONDS <= (answer.ended or 0.0) < seconds for answer in good)
    admitted = sorted(took for word, took in zip(words, times, strict=True) if word != "refused") or [0.0]
    counts = [words.count("refused"), words.count("failed")]
    for answer, word in zip(answers, words, strict=True):
        if word == "failed" and (failure := answer.failure):
            say(f"failed: {failure.kind}: {failure}")
    p99 = admitted[int(0.99 * (len(admitted) - 1))]
    return Step(rate, len(answers), len(good), *counts, steady / (seconds - RAMP_SECONDS), p99, cores)


async def climb(there: Scene, seconds: float) -> tuple[list[Step], Step]:
    """The steps up to the first that is not sustained, and the one at twice the best."""
    steps: list[Step] = []
    rate = FIRST_RATE
    while rate <= HIGHEST_RATE:
        steps.append(await step(there, rate, seconds, len(steps)))
        say("  ".join(steps[-1].row()))
        if steps[-1].good < SUSTAINED * steps[-1].requests:
            break
        rate *= GROWTH
    best = max(one.goodput for one in steps)
    return steps, await step(there, 2 * best, 2 * seconds, len(steps))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description="Asks for twice too much.")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each rate (default 15)")
    given = parser.parse_args()
    say(f"{describe()}\ndeadline {DEADLINE_SECONDS:g} s\n")
    with scene(env=ENVIRONMENT) as there:
        steps, twice = asyncio.run(climb(there, given.seconds))
    best = max(one.goodput for one in steps)
    say("\n" + markdown(HEAD, [one.row() for one in (*steps, twice)]))
    say(f"\nat twice the best rate: {100 * twice.goodput / best:.0f} % of the best goodput")
    sys.exit(0 if twice.goodput >= 0.9 * best and twice.p99 <= DEADLINE_SECONDS and not twice.failed else 1)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
