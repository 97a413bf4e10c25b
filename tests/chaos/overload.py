"""What a stack still does when twice as many ask as it can serve.

    python -m tests.chaos.overload

The rate rises step by step until an answer in twenty is refused or late. The rate with the best goodput (answers within
the deadline, a second) is asked for again and for longer, since the luckiest of ten short steps is no measure: that is
what the stack sustains. In turns with it twice as much is asked for. Goodput counts what is answered after the first
seconds and before the asking ends: what a short step leaves over to be answered later would make it look faster than a
long one. Load and stack share the machine.

Half of the pictures are of a few that were all answered for before the first step. So a request costs the same at
every rate; a picture whose first showing was refused would be new work when it comes again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from benchmarks.machine import describe
from cli.load.arrivals import send_times
from cli.load.experiment import Stopwatch
from cli.load.pictures import Album, generated
from cli.load.request import Answer, Picture
from cli.load.run import Bounds, Run
from cli.load.workload import Workload
from tests.chaos.act import MIX, PIXELS, REUSE
from tests.chaos.callers import Both
from tests.chaos.scene import Scene, scene
from tests.chaos.table import markdown
from tests.chaos.verdict import outcome
from ziya import event_loop

DEADLINE_SECONDS = 5.0
ENVIRONMENT = {"ZIYA_REQUEST_TIMEOUT": f"{DEADLINE_SECONDS:g}"}
FIRST_RATE, GROWTH, HIGHEST_RATE = 10.0, 1.4, 400.0
SUSTAINED = 0.95
TURNS = 2
FAMILIAR = 50
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


class Familiar(Album):
    """Shows pictures of `source`, or, instead of one that it has shown, one of `known`."""

    def __init__(self, source: Iterator[Picture], known: list[Picture]) -> None:
        super().__init__(source, REUSE)
        self._known = known

    def show(self, odds: float, which: float) -> tuple[Picture, bool]:
        return (self._known[int(which * len(self._known))], True) if odds < REUSE else super().show(1.0, which)


async def meet(there: Scene) -> list[Picture]:
    """Pictures that the stack has seen."""
    clock, nonce = Stopwatch(), time.time_ns()
    known = list(islice(generated(PIXELS, 0, nonce), FAMILIAR))
    shown = Workload(replace(MIX, image_share=1.0), Album(iter(known), 0.0), 0, nonce)
    both = Both(there.stack.url, there.stack.addresses["grpc"], clock)
    run = Run(both, shown, Bounds(FAMILIAR, None, DEADLINE_SECONDS + 5.0), clock)
    clock.restart()
    try:
        await run.closed(2)
    finally:
        await both.close()
    if failed := [answer.failure for answer in run.answers if answer.failure]:
        raise failed[0]
    return known


async def step(there: Scene, known: list[Picture], rate: float, seconds: float, seed: int) -> Step:
    """One rate for so long."""
    clock, nonce = Stopwatch(), time.time_ns()
    both = Both(there.stack.url, there.stack.addresses["grpc"], clock)
    album = Familiar(generated(PIXELS, seed, nonce), known)
    album.prepare(round(rate * seconds))
    asked = Workload(MIX, album, seed, nonce)
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


@dataclass(frozen=True)
class Climb:
    """`steps` up to the first that is not sustained; then the best rate again and twice its goodput, in turns."""

    steps: list[Step]
    best: list[Step]
    twice: list[Step]

    @property
    def sustained(self) -> float:
        """Requests answered in time, a second, at the best rate."""
        return sum(one.goodput for one in self.best) / len(self.best)

    @property
    def share(self) -> float:
        """Of the sustained goodput, how much is left at twice the rate."""
        return sum(one.goodput for one in self.twice) / len(self.twice) / self.sustained

    @property
    def holds(self) -> bool:
        in_time = all(one.p99 <= DEADLINE_SECONDS and not one.failed for one in self.twice)
        return in_time and self.share >= 0.9


async def climb(there: Scene, seconds: float) -> Climb:
    """All steps, told as they end."""
    found = Climb([], [], [])
    known = await meet(there)
    rate = FIRST_RATE
    while rate <= HIGHEST_RATE:
        await _told(found.steps, there, known, rate, seconds)
        if found.steps[-1].good < SUSTAINED * found.steps[-1].requests:
            break
        rate *= GROWTH
    best = max(found.steps, key=lambda one: one.goodput)
    for _ in range(TURNS):
        await _told(found.best, there, known, best.rate, 2 * seconds)
        await _told(found.twice, there, known, 2 * found.sustained, 2 * seconds)
    return found


async def _told(steps: list[Step], there: Scene, known: list[Picture], rate: float, seconds: float) -> None:
    steps.append(await step(there, known, rate, seconds, round(rate) + len(steps)))
    say("  ".join(steps[-1].row()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description="Asks for twice too much.")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each rate (default 15)")
    given = parser.parse_args()
    say(f"{describe()}\ndeadline {DEADLINE_SECONDS:g} s\n")
    with scene(env=ENVIRONMENT) as there:
        found = event_loop.run(climb(there, given.seconds))
    rows = [one.row() for one in (*found.steps, *found.best, *found.twice)]
    say("\n" + markdown(HEAD, rows))
    say(f"\nat twice the {found.sustained:.1f} that are sustained: {100 * found.share:.0f} % of them")
    sys.exit(0 if found.holds else 1)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
